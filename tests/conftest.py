import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: more threads are slower on small matrices
