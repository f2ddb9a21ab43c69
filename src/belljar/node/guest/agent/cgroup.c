/* The cgroup of a job, which bounds its memory and its number of processes.
 * A quarter of the machine's memory, at most MEMORY_RESERVE, stays with the agent and the kernel. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

/* Create a job's cgroup. Returns 0 or an errno. */
int make_job_cgroup(struct processes *job, uint32_t max_processes)
{
    snprintf(job->cgroup, sizeof job->cgroup, "/cgroup/job%u", agent.cgroup_count++);
    if (mkdir(job->cgroup, 0755) < 0)
        return errno;
    uint64_t total = read_number("/proc", "meminfo", "MemTotal:") * 1024;
    uint64_t reserve = total / 4 < MEMORY_RESERVE ? total / 4 : MEMORY_RESERVE;
    if (!write_number(job->cgroup, "memory.max", total - reserve) ||
        !write_number(job->cgroup, "pids.max", max_processes))
        return errno;
    return 0;
}
