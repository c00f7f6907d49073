"""A pretended CUDA device for the CPU build of PyTorch: the product runs on it unchanged, with ``--device cuda``.

``cuda.cpp`` registers an allocator, a device guard and a fallback for every operation on the CUDA key, which is empty
in a CPU build. It must be there before PyTorch is imported: ``pytest -p tests.pretended.plugin`` has it in the process
of the tests, ``device.environment()`` in processes that are started. It counts launches, waits, uploads and downloads
(``device.Trace``) and pretends CUDA graphs. Numbers are the CPU's: nothing of cuDNN, cuBLAS, atomics or TF32 shows.
"""
