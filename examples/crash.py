"""Fails: the traceback is in the logs, and the job's exit code is Python's 1. belljar is well; the script is not."""


def divide(a: int, b: int) -> float:
    return a / b


print("about to divide by zero")
print(divide(1, 0))
