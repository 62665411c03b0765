"""Tools for developers, never published: they may import the library and `nodes.names`, never the tests."""
