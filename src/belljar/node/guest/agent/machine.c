/* The machine: the agent's state, its log on the console, and its end.
 * Only PID 1 resets the machine; in tests the agent exits instead. */
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

/* Write one line to the console, truncated to 512 bytes. */
void log_line(const char *format, ...)
{
    static const char prefix[] = "belljar-agent: ";
    enum { PREFIX_LENGTH = sizeof prefix - 1, MAX_TEXT = 512 - PREFIX_LENGTH - 2 };
    char line[512];
    va_list args;
    memcpy(line, prefix, PREFIX_LENGTH);
    va_start(args, format);
    int n = vsnprintf(line + PREFIX_LENGTH, MAX_TEXT + 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    size_t length = PREFIX_LENGTH + ((size_t)n < MAX_TEXT ? (size_t)n : MAX_TEXT);
    line[length] = '\n';
    if (write(STDERR_FILENO, line, length + 1) < 0)
        return; /* no other place to report it */
}

/* A reset ends both hypervisors' processes; Firecracker has no power-off. */
_Noreturn void end_machine(void)
{
    if (agent.is_init) {
        reboot(RB_AUTOBOOT);
        for (;;)
            pause();
    }
    if (agent.job.reaper > 0 && !agent.in_session) /* a session's ends its commands when this process exits */
        kill(agent.job.reaper, SIGKILL);
    for (size_t i = 0; i < agent.prepared_count; i++)
        kill(agent.prepared[i].reaper, SIGKILL);
    exit(0);
}

/* Log the subject with errno's text, and end the machine. */
_Noreturn void die(const char *subject)
{
    log_line("%s: %s", subject, strerror(errno));
    end_machine();
}

void agent_init(void)
{
    processes_init(&agent.job);
    streams_init(&agent.streams, 0, agent.input);
    artifacts_init();
    agent.port = agent.listener = agent.exits_fd = -1;
    for (enum etc file = 0; file < ETC_FILES; file++)
        agent.etc[file] = -1;
    agent.prefork_folder = "/prefork";
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
        die("SIGPIPE");
}
