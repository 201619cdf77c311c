"""The pure core: tables of values and properties; no server, no thread, no clock."""
