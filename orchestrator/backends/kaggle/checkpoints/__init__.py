"""The checkpoint store of a run on Kaggle: index, discover, fetch, recheck, promote, clean up."""
