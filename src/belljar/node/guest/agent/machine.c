/* The machine itself: the agent's one state, its words on the console, and the ways to end it. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

struct agent agent;

uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void say(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    size_t len = (size_t)n < sizeof line - 2 ? (size_t)n : sizeof line - 2;
    line[len] = '\n';
    if (write(STDERR_FILENO, line, len + 1) < 0)
        return; /* nobody to tell */
}

/* End the machine. A reset ends both hypervisors' processes; Firecracker knows no power-off. */
_Noreturn void end_machine(void)
{
    if (agent.is_init) {
        reboot(RB_AUTOBOOT);
        for (;;)
            pause();
    }
    if (agent.job.reaper > 0)
        kill(agent.job.reaper, SIGKILL);
    for (size_t i = 0; i < agent.prepared_count; i++)
        kill(agent.prepared[i].reaper, SIGKILL);
    exit(0);
}

_Noreturn void die(const char *what)
{
    say("belljar-agent: %s: %s", what, strerror(errno));
    end_machine();
}

void start_empty(void)
{
    processes_init(&agent.job);
    artifacts_init();
    agent.port = agent.listener = agent.exits_fd = -1;
    for (enum etc file = 0; file < ETC_FILES; file++)
        agent.etc[file] = -1;
    agent.prefork_folder = "/prefork";
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
        die("SIGPIPE");
}
