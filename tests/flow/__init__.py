"""The threads of the flow, over full fakes of Redis and Kubernetes."""
