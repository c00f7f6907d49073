"""Protocol between the server and the nodes of a deployment: calls, forms of messages, versions, settings. Begin with
``calls``, the wire format.
"""
