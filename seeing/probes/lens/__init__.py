"""What a layer would say if the model ended there."""
