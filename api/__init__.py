"""Other APIs' doors to the service: `server` opens them on a port, and each API's shape is a file."""
