/* Sets of processes: a reaper in new namespaces and the agent's ends of what leads to it. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A pipe whose end `theirs` (0: reading) belongs to the job's user, so that it may open /dev/stdout again. */
static int job_pipe(int ends[2], int theirs, bool isolated, uint32_t uid, uint32_t gid)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return errno;
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_SIZE); /* only speed depends on it */
    if (isolated && fchown(ends[theirs], uid, gid) < 0)
        return errno;
    set_nonblocking(ends[1 - theirs]);
    return 0;
}

static int open_program(const char *name)
{
    char path[MAX_PATH_BYTES];
    if (strchr(name, '/') || name[0] == '.') {
        errno = EINVAL;
        return -1;
    }
    snprintf(path, sizeof path, "%s/%s", agent.prefork_folder, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static void close_processes(struct processes *job)
{
    close_fd(&job->report_fd);
    close_fd(&job->control_fd);
    close_fd(&job->order_fd);
    close_fd(&job->stdin_fd);
    for (int stream = 0; stream < STREAMS; stream++)
        close_fd(&job->output_fd[stream]);
}

void processes_init(struct processes *job)
{
    memset(job, 0, sizeof *job);
    job->report_fd = job->control_fd = job->order_fd = job->stdin_fd = -1;
    for (int stream = 0; stream < STREAMS; stream++)
        job->output_fd[stream] = -1;
}

/* In a reaper: what is the agent's alone. A reaper that kept the writing end of another set's standard input would keep
 * that job waiting for its end. */
static void close_agents_ends(void)
{
    for (size_t i = 0; i < agent.prepared_count; i++)
        close_processes(&agent.prepared[i]);
    for (enum etc file = 0; file < ETC_FILES; file++)
        close_fd(&agent.etc[file]);
    close_fd(&agent.exits_fd);
    close_fd(&agent.port);
}

/* A set of processes that waits for its order: a reaper in new namespaces and, when job->prefork names one, a prefork
 * program, whose command is in agent.argv. */
int start_processes(struct processes *job, const struct request *request)
{
    int in[2], out[2], err[2], report[2], control[2], orders[2], error;
    bool prefork = job->prefork[0] != 0;
    struct child child = {request->uid, request->gid, job->isolated, prefork && agent.stack_gap, {-1, -1, -1}, -1, -1, -1};
    if (job->isolated) {
        char path[64];
        if ((error = make_job_cgroup(job, request->max_processes)))
            return error;
        snprintf(path, sizeof path, "%s/cgroup.procs", job->cgroup);
        if ((child.cgroup_fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
            return errno;
    }
    if (prefork && (child.program_fd = open_program(job->prefork)) < 0)
        return errno;
    if ((error = job_pipe(in, 0, job->isolated, request->uid, request->gid)) ||
        (error = job_pipe(out, 1, job->isolated, request->uid, request->gid)) ||
        (error = job_pipe(err, 1, job->isolated, request->uid, request->gid)))
        return error;
    if (pipe2(report, O_CLOEXEC) < 0 || pipe2(control, O_CLOEXEC) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, orders) < 0)
        return errno;
    set_nonblocking(report[0]);
    unsigned long flags = SIGCHLD;
    if (job->isolated)
        flags |= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC;
    /* clone without a stack of its own is fork with namespaces, clone(2). */
    job->reaper = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (job->reaper < 0)
        return errno;
    if (job->reaper == 0) {
        close_agents_ends();
        child.stdio[0] = in[0];
        child.stdio[1] = out[1];
        child.stdio[2] = err[1];
        child.order_fd = orders[1];
        close(in[1]);
        close(control[1]);
        close(orders[0]);
        reaper_main(child, prefork, report[1], control[0]);
    }
    close_fd(&child.cgroup_fd);
    close_fd(&child.program_fd);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(report[1]);
    close(control[0]);
    close(orders[1]);
    job->stdin_fd = in[1];
    job->output_fd[STDOUT] = out[0];
    job->output_fd[STDERR] = err[0];
    job->report_fd = report[0];
    job->control_fd = control[1];
    job->order_fd = orders[0];
    return 0;
}

/* End processes that nobody will give an order to any more. */
void drop_processes(struct processes *job)
{
    if (job->reaper > 0) {
        kill(job->reaper, SIGKILL);
        waitpid(job->reaper, NULL, 0);
    }
    close_processes(job);
    if (job->cgroup[0])
        rmdir(job->cgroup);
    processes_init(job);
}

/* Whether a set's program ended while it waited, killed for its memory: its reaper said so. */
static bool has_ended(const struct processes *job)
{
    struct pollfd said = {.fd = job->report_fd, .events = POLLIN};
    return job->prefork[0] && poll(&said, 1, 0) == 1;
}

/* The newest set that was prepared with that prefork program, taken out of those that wait. */
bool take_prepared(struct processes *job, const char *prefork)
{
    for (size_t i = agent.prepared_count; i-- > 0;) {
        if (strcmp(agent.prepared[i].prefork, prefork) != 0 || has_ended(&agent.prepared[i]))
            continue;
        *job = agent.prepared[i];
        memmove(&agent.prepared[i], &agent.prepared[i + 1], (agent.prepared_count - i - 1) * sizeof *job);
        agent.prepared_count--;
        return true;
    }
    return false;
}

void forget_strings(void)
{
    agent.arena_len = agent.argc = agent.envc = 0;
    agent.argv[0] = agent.envp[0] = NULL;
}

static size_t append(char *buffer, size_t at, const char *text)
{
    size_t size = strlen(text) + 1;
    memcpy(buffer + at, text, size);
    return at + size;
}

/* Tell the processes what to become: to whom it concerns, and the words. Arguments come before the environment. All of it
 * at once: whoever waits for it is woken by the first piece, and would only wait again. */
bool give_order(struct processes *job, bool prefork)
{
    static char words[MAX_PATH_BYTES + ARENA_SIZE];
    uint8_t order = prefork ? ORDER_PREFORK : ORDER_EXEC;
    uint32_t head[2] = {0, (uint32_t)agent.argc};
    size_t size = append(words, sizeof head, agent.working_folder);
    for (size_t i = 0; i < agent.argc; i++)
        size = append(words, size, agent.argv[i]);
    for (size_t i = 0; i < agent.envc; i++)
        size = append(words, size, agent.envp[i]);
    head[0] = (uint32_t)(size - sizeof head);
    memcpy(words, head, sizeof head);
    bool ok = write(job->control_fd, &order, 1) == 1 && write_fully(job->order_fd, words, size);
    close_fd(&job->order_fd);
    return ok;
}
