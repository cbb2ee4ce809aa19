"""When and where requests run: queues, batches, sequences, and the threads of the instances."""
