/* The layout in memory of prefork programs. */
#include "agent.h"

#include <errno.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* One layout in memory for all prefork programs of this machine: a hypervisor that translates keeps its translations by
 * address, and those that a rehearsal caused are to serve the job. Yet no layout that can be known beforehand: without
 * randomization the kernel maps libraries below a gap for the stack, as large as the limit of the stack at the exec
 * (mmap_base in arch/x86/mm/mmap.c), and that is drawn at random for the machine. */
void choose_layout(void)
{
    enum { MIN_MIB = 1024, MIBS = 1 << 23 };
    uint32_t random;
    if (agent.is_init && agent.stack_gap == 0 && getrandom(&random, sizeof random, 0) == sizeof random)
        agent.stack_gap = (rlim_t)(MIN_MIB + random % MIBS) << 20;
}

/* Whether programs that are executed from now on are laid out at random; only while one is prepared they are not. */
void set_randomization(bool on)
{
    if (agent.stack_gap && !write_file("/proc/sys/kernel/randomize_va_space", on ? "2" : "0"))
        die("randomize_va_space");
}

/* By the child, before its exec: stop there, with the gap as its limit. */
bool ask_for_layout(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_STACK, &limit) < 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        return false;
    limit.rlim_cur = agent.stack_gap;
    return setrlimit(RLIMIT_STACK, &limit) == 0;
}

/* By its parent, when it has stopped: nothing of the new program has run yet, which looks at the limit when it starts.
 * Returns 0 or an errno; `reaped` says whether the child is no more. */
int resume_traced(pid_t child, bool *reaped)
{
    struct rlimit limit;
    int status;
    *reaped = false;
    if (waitpid(child, &status, 0) != child)
        return errno;
    if (!WIFSTOPPED(status)) {
        *reaped = true;
        return ECHILD;
    }
    if (getrlimit(RLIMIT_STACK, &limit) < 0 || prlimit(child, RLIMIT_STACK, &limit, NULL) < 0 ||
        ptrace(PTRACE_DETACH, child, NULL, NULL) < 0)
        return errno;
    return 0;
}
