"""Examples that travel with the package and are copied to users: real data, real training, a deployment.

Lives here: one directory per example, each complete on its own. Must not live here: anything Skerry itself imports;
these files are data to it, and may import libraries (PyTorch, scikit-learn) that it does without.
"""
