module ottoscaler.test/fakenode

go 1.21
