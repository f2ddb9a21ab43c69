/* The memory layout of prefork programs: fixed within one machine, random between machines.
 * All other programs are randomized by the kernel as usual. */
#include "agent.h"

#include <errno.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Choose one layout for all prefork programs of this machine: an emulating hypervisor caches translations by address,
 * and the job reuses those of a warm-up. The layout must not be predictable: without randomization the kernel maps
 * libraries below a gap as large as the stack limit at exec (mmap_base in arch/x86/mm/mmap.c), so that limit is drawn
 * at random. */
void choose_layout(void)
{
    enum { MIN_MIB = 1024, MIBS = 1 << 23 };
    uint32_t random;
    if (agent.is_init && agent.stack_gap == 0 && getrandom(&random, sizeof random, 0) == sizeof random)
        agent.stack_gap = (rlim_t)(MIN_MIB + random % MIBS) << 20;
}

/* Switch the kernel's randomization; it is off only while a set of processes is prepared. */
void set_randomization(bool on)
{
    if (agent.stack_gap && !write_file("/proc/sys/kernel/randomize_va_space", on ? "2" : "0"))
        die("randomize_va_space");
}

/* In the child, before exec: stop at the exec, with the gap as stack limit. */
bool request_layout(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_STACK, &limit) < 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        return false;
    limit.rlim_cur = agent.stack_gap;
    return setrlimit(RLIMIT_STACK, &limit) == 0;
}

/* In the parent: restore the stopped child's stack limit, before the new program reads it, and let it run. Returns 0 or
 * an errno; sets `reaped` when the child has exited and was reaped. */
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
