/* A session: a machine that runs many commands of one owner. Its reaper is PID 1 of the sandbox's namespaces and starts
 * each command; when it dies, so does the machine. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* How long commands may take to stop; one that waits for a disk stops later, before it runs on. */
#define FREEZE_MS 500

/* Without a script the working folder is a folder of the image's root. */
static int own_work_folder(uint32_t uid, uint32_t gid)
{
    cleanup_close int folder = open_below("/newroot", "/work", true);
    return folder < 0 || chown(path_of(folder).text, uid, gid) < 0 ? errno : 0;
}

static int mount_session(const struct request *request)
{
    if (!(request->flags & RUN_ISOLATED) || agent.has_script)
        return 0;
    return request->flags & RUN_SCRIPT ? mount_script(request->uid, request->gid)
                                       : own_work_folder(request->uid, request->gid);
}

static int start_session_processes(const struct request *request)
{
    uint8_t control = CONTROL_SESSION;
    int error = 0;
    if (!claim_prepared(&agent.job, "")) {
        processes_init(&agent.job);
        agent.job.isolated = (request->flags & RUN_ISOLATED) != 0;
        error = start_processes(&agent.job, request);
    }
    if (!error && agent.job.isolated && !write_number(agent.job.cgroup, "pids.max", request->max_processes))
        error = errno;
    if (!error && write(agent.job.control_fd, &control, 1) != 1)
        error = errno;
    close_fd(&agent.job.stdin_fd);
    for (int stream = 0; stream < STREAMS; stream++)
        close_fd(&agent.job.output_fd[stream]);
    return error;
}

/* Let this process have a descriptor for every stream of every channel; poll(2) takes no more than the limit. Commands
 * have the limit that their reaper inherited before. */
static int raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return errno;
    if (limit.rlim_cur >= MAX_DESCRIPTORS)
        return 0;
    limit.rlim_cur = MAX_DESCRIPTORS;
    if (limit.rlim_max < MAX_DESCRIPTORS)
        limit.rlim_max = MAX_DESCRIPTORS;
    return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? errno : 0;
}

static void destroy_prepared(void)
{
    while (agent.prepared_count > 0)
        destroy_processes(&agent.prepared[--agent.prepared_count]);
}

/* End the processes that were prepared for a job and that no session needs, but not before the session's first
 * commands. Return the milliseconds until that is due; -1: nothing is. */
int end_prepared(void)
{
    enum { DELAY_MS = 500 };
    uint64_t age_ms = (now_us() - agent.session_since_us) / 1000;
    if (agent.prepared_count == 0)
        return -1;
    if (age_ms < DELAY_MS)
        return (int)(DELAY_MS - age_ms);
    destroy_prepared();
    return -1;
}

/* SESSION: as RUN, without a command. Other prepared processes are ended later: the session starts its own. */
void start_session(const uint8_t *payload, size_t length)
{
    char prefork[MAX_NAME + 1];
    struct request request = read_request(payload, length, prefork);
    int error = mount_session(&request);
    if (error) {
        send_failed(STAGE_SCRIPT, error);
        return;
    }
    if (!(error = start_session_processes(&request)))
        error = raise_descriptor_limit();
    if (error) {
        destroy_processes(&agent.job);
        send_failed(STAGE_ISOLATE, error);
        return;
    }
    clear_strings();
    agent.session_uid = request.uid;
    agent.session_since_us = now_us();
    agent.in_session = agent.attached = true;
    agent.phase = IN_SESSION;
    send_control(SERVING, NULL, 0);
}

/* Send a request to the reaper, which always reads: it waits for nothing but the start of a command. */
void send_request(const struct session_request *request, const void *text, const int *fds, size_t fd_count)
{
    if (!send_with_descriptors(agent.job.command_fd, request, sizeof *request, fds, fd_count) ||
        (request->size && !write_fully(agent.job.command_fd, text, request->size)))
        die("reaper");
}

void read_session_reports(void)
{
    struct report report;
    for (int i = 0; i < 64; i++) { /* then the host's turn */
        ssize_t n = read(agent.job.report_fd, &report, sizeof report);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n != sizeof report || report.type == REPORT_ISOLATE_FAILED) {
            errno = ECHILD;
            die("the sandbox's init ended");
        }
        if (report.channel)
            handle_command_report(&report);
    }
}

/* Tell a channel that a new host does not know: pid, flags, how many bytes of input it takes. */
static void send_channel(struct channel *channel)
{
    uint8_t payload[16] = {0};
    const struct streams *streams = &channel->streams;
    uint32_t flags = (channel->state == CHANNEL_ENDED ? CHANNEL_EXITED : 0) |
                     (channel->terminal ? CHANNEL_TERMINAL : 0) |
                     (streams->input_ended || !streams->input ? CHANNEL_INPUT_ENDED : 0);
    if (channel->state == CHANNEL_LINGERING || channel->state == CHANNEL_CONNECTING ||
        channel->state == CHANNEL_CONNECTED)
        return;
    put_u32(payload, channel->pid);
    put_u32(payload + 4, flags);
    put_u32(payload + 8, (uint32_t)(streams->window - streams->input_len));
    send_on(streams->channel, CHANNEL, NONE, payload, sizeof payload);
    if (channel->state == CHANNEL_ENDED)
        send_exit(channel);
}

/* Let no command run between SUSPEND and CHANNELS: copies of the machine would draw the same random bytes, until each has
 * its own entropy, time and names. */
static void freeze_commands(bool freeze)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    if (!agent.in_session || !agent.job.isolated)
        return;
    if (!write_number(agent.job.cgroup, "cgroup.freeze", freeze))
        die("cgroup.freeze");
    for (int i = 0; freeze && i < FREEZE_MS && !read_number(agent.job.cgroup, "cgroup.events", "frozen "); i++)
        nanosleep(&pause_ms, NULL);
}

/* CHANNELS: the host of a machine that was resumed gets to know its commands; from now on they run, and their frames are
 * sent. */
void list_channels(void)
{
    freeze_commands(false);
    for_each_channel(send_channel);
    agent.attached = true;
    send_control(SERVING, NULL, 0);
}

static void detach_channel(struct channel *channel)
{
    memset(channel->streams.credit, 0, sizeof channel->streams.credit);
    if (channel->state != CHANNEL_LINGERING && channel->state != CHANNEL_ENDED)
        memset(channel->streams.discard, 0, sizeof channel->streams.discard);
    channel->closing = false; /* the new host does not know of it, and gets the exit */
    if (channel->state == CHANNEL_CONNECTING || channel->state == CHANNEL_CONNECTED)
        finish_connection(channel, ECANCELED);
}

/* SUSPEND: whoever resumes the machine is a new host, with new credit. Connections end, commands go on. */
void detach_channels(void)
{
    for_each_channel(detach_channel);
    if (agent.in_session)
        destroy_prepared();
    freeze_commands(true);
    agent.attached = false;
    agent.meter_ms = 0;
    clear_strings();
}
