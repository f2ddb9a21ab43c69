"""Fail with a traceback: it is in the log, and the job has the exit code 1 of Python."""


def divide(a: int, b: int) -> float:
    return a / b


print("about to divide by zero")
print(divide(1, 0))
