/* Sets of processes: a reaper in new namespaces, and the agent's ends of its pipes.
 * An error while a set is started closes every descriptor and leaves no process. */
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

/* Two connected descriptors: one for the agent, one for the reaper or the job. */
struct ends {
    int ours, theirs;
};

static void close_ends(struct ends *ends)
{
    close_fd(&ends->ours);
    close_fd(&ends->theirs);
}
#define cleanup_ends __attribute__((cleanup(close_ends)))
#define NO_ENDS {-1, -1}

static bool open_pipe(struct ends *ends, bool we_read)
{
    int pipe[2];
    if (pipe2(pipe, O_CLOEXEC) < 0)
        return false;
    *ends = we_read ? (struct ends){pipe[0], pipe[1]} : (struct ends){pipe[1], pipe[0]};
    return true;
}

/* Open a stream of the job. The job's user owns its end, so that it may reopen /dev/stdout. */
static bool open_stream(struct ends *ends, bool we_read, bool isolated, const struct request *request)
{
    if (!open_pipe(ends, we_read) || (isolated && fchown(ends->theirs, request->uid, request->gid) < 0))
        return false;
    fcntl(ends->ours, F_SETPIPE_SZ, PIPE_SIZE); /* affects only speed */
    set_nonblocking(ends->ours);
    return true;
}

static bool open_socket_pair(struct ends *ends)
{
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
        return false;
    *ends = (struct ends){sockets[0], sockets[1]};
    return true;
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
    close_fd(&job->command_fd);
    close_fd(&job->stdin_fd);
    for (int stream = 0; stream < STREAMS; stream++)
        close_fd(&job->output_fd[stream]);
}

void processes_init(struct processes *job)
{
    memset(job, 0, sizeof *job);
    job->report_fd = job->control_fd = job->command_fd = job->stdin_fd = -1;
    for (int stream = 0; stream < STREAMS; stream++)
        job->output_fd[stream] = -1;
}

/* Create the job's cgroup and open its cgroup.procs, through which a process enters it; -1 with errno. */
static int open_cgroup(struct processes *job, const struct request *request)
{
    char path[64];
    if ((errno = make_job_cgroup(job, request->max_processes)))
        return -1;
    snprintf(path, sizeof path, "%s/cgroup.procs", job->cgroup);
    return open(path, O_WRONLY | O_CLOEXEC);
}

/* Start a set of processes that waits for a command: a reaper in new namespaces and, when job->prefork names one, a
 * prefork program, whose own command is in agent.argv. Returns 0 or an errno. */
int start_processes(struct processes *job, const struct request *request)
{
    cleanup_ends struct ends in = NO_ENDS, out = NO_ENDS, err = NO_ENDS;
    cleanup_ends struct ends report = NO_ENDS, control = NO_ENDS, command = NO_ENDS;
    cleanup_close int cgroup = -1, program = -1;
    bool prefork = job->prefork[0] != 0;
    if (job->isolated && (cgroup = open_cgroup(job, request)) < 0)
        return errno;
    if (job->isolated)
        make_home(request->uid, request->gid);
    if (prefork && (program = open_program(job->prefork)) < 0)
        return errno;
    if (!open_stream(&in, false, job->isolated, request) || !open_stream(&out, true, job->isolated, request) ||
        !open_stream(&err, true, job->isolated, request) || !open_pipe(&report, true) || !open_pipe(&control, false) ||
        !open_socket_pair(&command))
        return errno;
    set_nonblocking(report.ours);
    unsigned long flags = SIGCHLD;
    if (job->isolated)
        flags |= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC;
    /* clone(2) without a stack is fork with namespaces. */
    job->reaper = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (job->reaper < 0)
        return errno;
    if (job->reaper == 0) {
        struct child child = {.uid = request->uid, .gid = request->gid, .isolated = job->isolated,
                              .fixed_layout = prefork && agent.stack_gap,
                              .stdio = {in.theirs, out.theirs, err.theirs}, .cgroup_fd = cgroup,
                              .command_fd = command.theirs, .program_fd = program};
        struct command prefork_command = {"/", agent.argv, agent.envp};
        reaper_main(&child, prefork ? &prefork_command : NULL,
                    (struct reaper_ends){report.theirs, control.theirs, command.theirs});
    }
    job->stdin_fd = release_fd(&in.ours);
    job->output_fd[STDOUT] = release_fd(&out.ours);
    job->output_fd[STDERR] = release_fd(&err.ours);
    job->report_fd = release_fd(&report.ours);
    job->control_fd = release_fd(&control.ours);
    job->command_fd = release_fd(&command.ours);
    return 0;
}

/* Kill a set of processes and free its descriptors and cgroup. */
void destroy_processes(struct processes *job)
{
    if (job->reaper > 0 && (kill(job->reaper, SIGKILL) < 0 || waitpid(job->reaper, NULL, 0) != job->reaper))
        die("reaper");
    close_processes(job);
    if (job->cgroup[0] && rmdir(job->cgroup) < 0)
        log_line("%s: %s", job->cgroup, strerror(errno)); /* harmless: no other cgroup gets this name */
    processes_init(job);
}

/* Return whether a set's prefork program ended while it waited, for example killed by the OOM killer. */
static bool has_exited(const struct processes *job)
{
    struct pollfd report = {.fd = job->report_fd, .events = POLLIN};
    return job->prefork[0] && poll(&report, 1, 0) == 1;
}

/* Move the newest set prepared with that prefork program to `job`; return false when there is none. */
bool claim_prepared(struct processes *job, const char *prefork)
{
    for (size_t i = agent.prepared_count; i-- > 0;) {
        if (strcmp(agent.prepared[i].prefork, prefork) != 0 || has_exited(&agent.prepared[i]))
            continue;
        *job = agent.prepared[i];
        memmove(&agent.prepared[i], &agent.prepared[i + 1], (agent.prepared_count - i - 1) * sizeof *job);
        agent.prepared_count--;
        return true;
    }
    return false;
}

void clear_strings(void)
{
    agent.arena_len = agent.argc = agent.envc = 0;
    agent.argv[0] = agent.envp[0] = NULL;
}

static char command_text[2 * sizeof(uint32_t) + ARENA_SIZE];

static size_t append(char *buffer, size_t at, const char *text)
{
    size_t size = strlen(text) + 1;
    memcpy(buffer + at, text, size);
    return at + size;
}

/* Write the working folder, the arguments and the environment that the host sent to `text`, each with its zero; return
 * their size, at most ARENA_SIZE. */
size_t pack_command(char *text)
{
    size_t size = append(text, 0, agent.working_folder);
    for (size_t i = 0; i < agent.argc; i++)
        size = append(text, size, agent.argv[i]);
    for (size_t i = 0; i < agent.envc; i++)
        size = append(text, size, agent.envp[i]);
    return size;
}

/* Send the command to a waiting set: to its prefork program, or to its reaper to execute. The text is written at once:
 * the reader wakes at the first piece and would only wait again. */
bool send_command(struct processes *job, bool prefork)
{
    uint8_t control = prefork ? CONTROL_PREFORK : CONTROL_EXEC;
    uint32_t head[2] = {0, (uint32_t)agent.argc};
    head[0] = (uint32_t)pack_command(command_text + sizeof head);
    memcpy(command_text, head, sizeof head);
    bool ok = write(job->control_fd, &control, 1) == 1 &&
              write_fully(job->command_fd, command_text, sizeof head + head[0]);
    close_fd(&job->command_fd);
    return ok;
}
