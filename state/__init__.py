"""What is true: the frozen documents and durable stores that the controller and the worker share."""
