"""The interface to the log handler, and the code that grpcio-tools makes of it (`make proto`)."""
