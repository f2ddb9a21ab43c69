/* Prints the result of resume_traced for a child that exited instead of stopping, with errno 0 before. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    bool reaped = false;
    pid_t child = fork();
    if (child == 0)
        _exit(3);
    errno = 0;
    int error = resume_traced(child, &reaped);
    printf("error %d reaped %d left %d\n", error != 0, reaped, waitpid(child, NULL, 0) == child);
    return 0;
}
