/* The commands of a session, from EXEC to their exit: pipes or a terminal, a cgroup of their own, signals. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    EXEC_SIZE = 16,                  /* bytes before the working folder */
    TERMINAL_LEFT = 256 * 1024,      /* bytes of a terminal that are forwarded after its command's exit */
    MAX_EMPTY_CGROUPS = 16,
};

/* The kernel makes and removes a cgroup slowly: those that are empty again are kept for later commands. */
static unsigned cgroup_count, empty_cgroups[MAX_EMPTY_CGROUPS];
static size_t empty_count;

struct cgroup_path {
    char text[48];
};

static struct cgroup_path cgroup_path(const struct channel *channel)
{
    struct cgroup_path path;
    snprintf(path.text, sizeof path.text, "%s/c%u", agent.job.cgroup, channel->cgroup);
    return path;
}

/* A cgroup of its own holds every descendant, also those that leave the process group. Return its cgroup.procs, or -1.
 * The limits are those of the sandbox's cgroup above. */
static int open_command_cgroup(struct channel *channel)
{
    char procs[64];
    bool is_new = empty_count == 0;
    channel->cgroup = is_new ? ++cgroup_count : empty_cgroups[--empty_count];
    struct cgroup_path path = cgroup_path(channel);
    if (is_new && mkdir(path.text, 0755) < 0) {
        channel->cgroup = 0;
        return -1;
    }
    snprintf(procs, sizeof procs, "%s/cgroup.procs", path.text);
    return open(procs, O_WRONLY | O_CLOEXEC);
}

/* Return whether the command's cgroup has no process. None can enter it any more: only its processes could. */
static bool is_cgroup_empty(const struct channel *channel)
{
    char path[64], byte;
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup_path(channel).text);
    cleanup_close int procs = open(path, O_RDONLY | O_CLOEXEC);
    return procs >= 0 && read(procs, &byte, 1) == 0;
}

/* Give the command's cgroup up; return false while processes are left in it. */
bool remove_command_cgroup(struct channel *channel)
{
    if (channel->cgroup && empty_count < MAX_EMPTY_CGROUPS) {
        if (!is_cgroup_empty(channel))
            return false;
        empty_cgroups[empty_count++] = channel->cgroup;
    } else if (channel->cgroup && rmdir(cgroup_path(channel).text) < 0 && errno != ENOENT) {
        return false;
    }
    channel->cgroup = 0;
    return true;
}

static bool open_stream_pipe(int *ours, int *theirs, bool we_read, const struct session_request *request)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    *ours = ends[we_read ? 0 : 1];
    *theirs = ends[we_read ? 1 : 0];
    if (agent.job.isolated && fchown(*theirs, request->uid, request->gid) < 0)
        return false;
    fcntl(*ours, F_SETPIPE_SZ, PIPE_SIZE); /* affects only speed; bounded by pipe-user-pages-soft */
    set_nonblocking(*ours);
    return true;
}

/* Send EXEC to the reaper with the descriptors it needs. A terminal is opened there: its name must be valid there. */
static int request_command(struct channel *channel, struct session_request *request)
{
    static char text[ARENA_SIZE];
    cleanup_close int in = -1, out = -1, err = -1, cgroup = -1;
    int *ours = channel->streams.output_fd;
    if (agent.job.isolated && (cgroup = open_command_cgroup(channel)) < 0)
        return errno;
    if (!channel->terminal && (!open_stream_pipe(&channel->streams.input_fd, &in, false, request) ||
                               !open_stream_pipe(&ours[STDOUT], &out, true, request) ||
                               !open_stream_pipe(&ours[STDERR], &err, true, request)))
        return errno;
    int fds[4];
    size_t count = 0;
    if (!channel->terminal) {
        fds[count++] = in;
        fds[count++] = out;
        fds[count++] = err;
    }
    if (cgroup >= 0)
        fds[count++] = cgroup;
    request->argc = (uint32_t)agent.argc;
    request->size = (uint32_t)pack_command(text);
    send_request(request, text, fds, count);
    return 0;
}

static void fail_command(struct channel *channel, enum stage stage, int error)
{
    uint16_t id = channel->streams.channel;
    send_failure(id, stage, error);
    free_channel(channel);
    send_closed(id, error);
}

/* EXEC: uid u32, gid u32, flags u32, columns u16, rows u16, working folder. The strings came before. A session of
 * another user than root starts no command as another user: what root may do is removed from it when it starts. */
void start_session_command(uint16_t id, const uint8_t *payload, size_t length)
{
    struct session_request request = {.type = REQUEST_EXEC, .channel = id};
    if (length <= EXEC_SIZE || length - EXEC_SIZE >= MAX_PATH_BYTES || agent.argc == 0 || agent.strings_channel != id ||
        memchr(payload + EXEC_SIZE, 0, length - EXEC_SIZE) || get_u32(payload + 8) > (EXEC_TERMINAL | EXEC_FILES)) {
        errno = EPROTO;
        die("unexpected EXEC from host");
    }
    request.uid = get_u32(payload);
    request.gid = get_u32(payload + 4);
    request.flags = (uint16_t)get_u32(payload + 8);
    request.columns = get_u16(payload + 12);
    request.rows = get_u16(payload + 14);
    memcpy(agent.working_folder, payload + EXEC_SIZE, length - EXEC_SIZE);
    agent.working_folder[length - EXEC_SIZE] = 0;
    struct channel *channel = open_channel(id, CHANNEL_STARTING);
    if (!channel) {
        send_failure(id, STAGE_ISOLATE, EAGAIN);
        send_closed(id, EAGAIN);
    } else {
        channel->terminal = (request.flags & EXEC_TERMINAL) != 0;
        channel->files = (request.flags & EXEC_FILES) != 0;
        bool other_user = agent.job.isolated && agent.session_uid != 0 && request.uid != agent.session_uid;
        int error = other_user ? EPERM : request_command(channel, &request);
        if (error)
            fail_command(channel, STAGE_ISOLATE, error);
    }
    clear_strings();
}

static void receive_terminal(struct channel *channel)
{
    uint16_t id = 0;
    int fds[1];
    size_t count = 1;
    if (receive_with_descriptors(agent.job.command_fd, &id, sizeof id, fds, &count) != sizeof id || count != 1 ||
        id != channel->streams.channel) {
        errno = EPROTO;
        die("terminal");
    }
    set_nonblocking(fds[0]);
    channel->streams.output_fd[STDOUT] = fds[0];
    channel->streams.input_fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
}

static void note_started(struct channel *channel, const struct report *report)
{
    uint8_t pid[4];
    if (channel->terminal)
        receive_terminal(channel);
    channel->state = CHANNEL_RUNNING;
    channel->pid = (uint32_t)report->value;
    channel->started_us = report->started_us;
    put_u32(pid, channel->pid);
    send_on(channel->streams.channel, STARTED, NONE, pid, sizeof pid);
    forward_input(&channel->streams);
}

/* After the exit, forward what the command has written until now: processes that it left may write for ever. */
static void note_exited(struct channel *channel, const struct report *report)
{
    channel->exit = *report;
    channel->ended_us = channel->idle_since_us = now_us();
    close_fd(&channel->streams.input_fd);
    for (enum stream stream = STDOUT; stream <= STDERR; stream++) {
        int fd = channel->streams.output_fd[stream], left = 0;
        if (channel->terminal) /* what it has written may still be on its way to its end here */
            channel->streams.limit[stream] = TERMINAL_LEFT;
        else if (fd >= 0 && ioctl(fd, FIONREAD, &left) == 0)
            channel->streams.limit[stream] = (uint64_t)left;
    }
}

/* The reaper's report about a command: it started, it could not be started, it exited. */
void handle_command_report(const struct report *report)
{
    struct channel *channel = find_channel(report->channel);
    if (!channel)
        return; /* never: a channel with a process is not freed */
    if (report->type == REPORT_STARTED)
        note_started(channel, report);
    else if (report->type == REPORT_EXEC_FAILED)
        fail_command(channel, STAGE_EXEC, report->value);
    else if (report->type == REPORT_EXITED)
        note_exited(channel, report);
}

static bool is_forwarded(const struct channel *channel, enum stream stream)
{
    const struct streams *streams = &channel->streams;
    if (streams->output_fd[stream] < 0 || streams->limit[stream] == 0)
        return true;
    return channel->terminal && can_forward(streams, stream) &&
           now_us() - channel->idle_since_us >= TERMINAL_DRAIN_MS * 1000;
}

/* OOM kills since the last command that was killed: the kernel counts those of the whole sandbox. */
static uint32_t count_oom_kills(const struct channel *channel)
{
    if (!agent.job.isolated || !WIFSIGNALED(channel->exit.value) || WTERMSIG(channel->exit.value) != SIGKILL)
        return 0;
    uint64_t kills = read_number(agent.job.cgroup, "memory.events", "oom_kill ");
    uint64_t fresh = kills - agent.session_oom_kills;
    agent.session_oom_kills = kills;
    return (uint32_t)fresh;
}

void send_exit(struct channel *channel)
{
    const struct report *exit = &channel->exit;
    struct usage usage = {channel->oom_kills, exit->cpu_us, exit->max_rss_bytes,
                          channel->ended_us - channel->started_us};
    send_exited(channel->streams.channel, exit->value, &usage);
}

/* Send EXITED once the command has exited and its output is forwarded. What processes that it left still write is
 * discarded, so that they do not die of it; a terminal is closed. */
bool finish_session_command(struct channel *channel)
{
    struct streams *streams = &channel->streams;
    if (channel->exit.type != REPORT_EXITED || !is_forwarded(channel, STDOUT) || !is_forwarded(channel, STDERR))
        return false;
    channel->state = CHANNEL_ENDED;
    channel->oom_kills = count_oom_kills(channel);
    release_buffer(channel);
    if (channel->terminal)
        close_streams(streams);
    for (enum stream stream = STDOUT; stream <= STDERR; stream++) {
        streams->discard[stream] = true;
        streams->limit[stream] = UINT64_MAX;
    }
    if (channel->closing)
        release_channel(channel);
    else
        send_exit(channel);
    return true;
}

/* Signal the command's process group, or kill every process that descends from it. */
void signal_command(struct channel *channel, uint8_t number, bool descendants)
{
    struct session_request request = {.type = REQUEST_SIGNAL, .channel = channel->streams.channel, .signal = number};
    if (descendants && channel->cgroup &&
        !write_number(cgroup_path(channel).text, "cgroup.kill", 1))
        log_line("cgroup.kill: %s", strerror(errno)); /* the process group is killed all the same */
    if (channel->state == CHANNEL_STARTING || channel->state == CHANNEL_RUNNING)
        send_request(&request, NULL, NULL, 0);
}
