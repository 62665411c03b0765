"""Tools for developers, never published. They may import the library and `nodes.names`, never the tests."""
