/* The cgroup of a job. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

/* A cgroup of the processes' own, with the machine's memory less what the agent and the kernel need. */
int make_job_cgroup(struct processes *job, uint32_t max_processes)
{
    snprintf(job->cgroup, sizeof job->cgroup, "/cgroup/job%u", agent.made++);
    if (mkdir(job->cgroup, 0755) < 0)
        return errno;
    uint64_t total = read_number("/proc", "meminfo", "MemTotal:") * 1024;
    uint64_t reserve = total / 4 < MEMORY_RESERVE ? total / 4 : MEMORY_RESERVE;
    if (!write_number(job->cgroup, "memory.max", total - reserve) ||
        !write_number(job->cgroup, "pids.max", max_processes))
        return errno;
    return 0;
}
