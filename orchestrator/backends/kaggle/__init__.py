"""What the controller does on a Kaggle account, apart from launching and watching sessions."""
