import os
import signal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: more threads are slower on small matrices
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job, and of all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
