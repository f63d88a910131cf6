import os
import signal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy's import; more threads are slower on small matrices
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job and its children ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
