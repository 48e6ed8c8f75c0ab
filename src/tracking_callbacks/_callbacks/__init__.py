"""What every framework's callback needs: which run it writes to, dataset inputs, and saving and registering models."""
