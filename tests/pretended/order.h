// What happens before what on the pretended GPU: each stream has a vector clock, which events, waits and the host carry to
// others. An operation that uses memory which another stream has used, and that has not waited for it, is refused; on a
// GPU it would be a race, which no result need show.
#pragma once
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace order {
using Clock = std::map<int, int64_t>;                      // by stream, how many of its operations have happened

struct Uses {                                              // of memory, or of what several graphs share
  int writer = -1;
  int64_t written = 0;
  std::string by;                                          // the last operation that wrote
  Clock reads;                                             // since then
};

struct Block {
  int stream;                                              // on which it was allocated, and may be again once it is free
  int owners = 1;
  bool of_graph;                                           // has a place of its own in a graph's pool
  std::set<int> recorded;                                  // streams that `record_stream` has named
  Uses uses;
};

inline thread_local int current = 0;                       // stream of this thread; 0 is the default one
inline auto& lock = *new std::mutex;                       // these are never freed: static order at exit
inline auto& streams = *new std::map<int, Clock>;
inline auto& events = *new std::map<int, Clock>;
inline auto& host = *new Clock;                            // what the host has waited for
inline auto& freed = *new std::map<int, Clock>;            // by stream: uses elsewhere of memory that was freed there
inline auto& blocks = *new std::map<const void*, Block>;
inline auto& shared = *new std::map<std::string, Uses>;

inline void join(Clock& into, const Clock& other) {
  for (auto& [stream, count] : other) into[stream] = std::max(into[stream], count);
}

inline Clock& here() {                                     // clock of the current stream: the host launches in order
  join(streams[current], host);
  return streams[current];
}

inline std::string race(const std::string& name, const std::string& what, int other) {
  return "race: " + name + " on stream " + std::to_string(current) + " " + what + " stream " + std::to_string(other) +
         ", for which it has not waited";
}

inline void use(Uses& uses, bool writes, const std::string& name, const std::string& what) {
  Clock& clock = streams[current];
  if (uses.writer >= 0 && clock[uses.writer] < uses.written)
    TORCH_CHECK(false, race(name, "uses " + what + " that " + uses.by + " writes on", uses.writer));
  if (!writes) {
    uses.reads[current] = clock[current];
    return;
  }
  for (auto& [stream, count] : uses.reads)
    if (clock[stream] < count) TORCH_CHECK(false, race(name, "writes " + what + " that is read on", stream));
  uses = Uses{current, clock[current], name, {}};
}

// An operation on the current stream, by the addresses of the storages that it reads and writes.
inline void operation(const std::string& name, const std::vector<const void*>& reads,
                      const std::vector<const void*>& writes) {
  std::lock_guard<std::mutex> guard(lock);
  ++here()[current];
  for (auto* p : reads)
    if (auto it = blocks.find(p); it != blocks.end()) use(it->second.uses, false, name, "memory");
  for (auto* p : writes)
    if (auto it = blocks.find(p); it != blocks.end()) use(it->second.uses, true, name, "memory");
}

// A replay uses what its graph shares with others as a whole.
inline void replay(const std::vector<std::string>& what) {
  std::lock_guard<std::mutex> guard(lock);
  ++here()[current];
  for (auto& name : what) use(shared[name], true, "graph replay", name);
}

inline void allocate(const void* p, bool of_graph) {
  std::lock_guard<std::mutex> guard(lock);
  if (auto it = blocks.find(p); it != blocks.end()) {
    ++it->second.owners;
    return;
  }
  if (!of_graph)
    for (auto& [stream, count] : freed[current])
      if (here()[stream] < count)
        TORCH_CHECK(false, race("an allocation", "may get memory that was freed while it is used on", stream));
  blocks[p] = Block{current, 1, of_graph, {}, {}};
}

inline void release(const void* p) {
  std::lock_guard<std::mutex> guard(lock);
  auto it = blocks.find(p);
  if (it == blocks.end() || --it->second.owners) return;
  Block& b = it->second;
  if (!b.of_graph) {
    if (b.uses.writer >= 0) b.uses.reads[b.uses.writer] = std::max(b.uses.reads[b.uses.writer], b.uses.written);
    for (auto& [stream, count] : b.uses.reads)
      if (stream != b.stream && !b.recorded.count(stream))
        freed[b.stream][stream] = std::max(freed[b.stream][stream], count);
  }
  blocks.erase(it);
}

inline void record_stream(const void* p, int stream) {
  std::lock_guard<std::mutex> guard(lock);
  if (auto it = blocks.find(p); it != blocks.end()) it->second.recorded.insert(stream);
}

inline void host_waits(int stream) {                       // below 0: for all
  std::lock_guard<std::mutex> guard(lock);
  for (auto& [which, clock] : streams)
    if (stream < 0 || which == stream) join(host, clock);
}

inline Clock now(int stream) {
  std::lock_guard<std::mutex> guard(lock);
  Clock clock = streams[stream];
  join(clock, host);
  return clock;
}

inline void wait(int stream, const Clock& clock) {
  std::lock_guard<std::mutex> guard(lock);
  join(streams[stream], clock);
}
}  // namespace order
