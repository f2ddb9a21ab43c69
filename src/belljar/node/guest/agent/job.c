/* The job: its start, its reaper's reports, its end.
 * A command that another may follow leaves the agent ready again after REST. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

void start_job(const uint8_t *payload, size_t length)
{
    char prefork[MAX_NAME + 1];
    struct request request = read_request(payload, length, prefork);
    if (agent.argc == 0) {
        errno = EPROTO;
        die("RUN without arguments from host");
    }
    bool isolated = (request.flags & RUN_ISOLATED) != 0;
    agent.keep = (request.flags & RUN_KEEP) != 0;
    agent.warm_up = (request.flags & RUN_WARM_UP) != 0;
    agent.started_us = 0;
    agent.has_status = agent.main_exiting = false;
    int error;
    if (isolated && !agent.has_script && ((error = mount_script(request.uid, request.gid)))) {
        send_failed(STAGE_SCRIPT, error);
        return;
    }
    bool preforked = prefork[0] && claim_prepared(&agent.job, prefork);
    if (!preforked && !claim_prepared(&agent.job, "")) {
        processes_init(&agent.job);
        agent.job.isolated = isolated;
        if ((error = start_processes(&agent.job, &request))) {
            destroy_processes(&agent.job);
            send_failed(STAGE_ISOLATE, error);
            return;
        }
    }
    if (!preforked)
        agent.job.main = 0;
    agent.cpu_before_us = isolated ? read_number(agent.job.cgroup, "cpu.stat", "usage_usec ") : 0;
    agent.streams.input_fd = release_fd(&agent.job.stdin_fd);
    for (enum stream stream = STDOUT; stream <= STDERR; stream++)
        agent.streams.output_fd[stream] = release_fd(&agent.job.output_fd[stream]);
    if (!send_command(&agent.job, preforked)) {
        send_failed(STAGE_ISOLATE, errno);
        return;
    }
    clear_strings();
    agent.phase = RUNNING;
}

/* Wait for a reaper that has exited. Without an exit report it was killed, and the job with it. */
static void reap_reaper(struct processes *job)
{
    close_fd(&job->report_fd);
    close_fd(&job->control_fd);
    if (waitpid(job->reaper, NULL, 0) < 0)
        die("waitpid");
    job->reaper = 0;
    agent.ended_us = now_us();
    if (!agent.has_status)
        agent.wait_status = SIGKILL;
    if (agent.phase == RUNNING && !agent.started_us) /* killed before it started the command */
        send_failed(STAGE_ISOLATE, ECHILD);
}

void read_report(void)
{
    struct report report;
    uint8_t pid[4];
    ssize_t n = read(agent.job.report_fd, &report, sizeof report);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != sizeof report) {
        reap_reaper(&agent.job);
        return;
    }
    switch (report.type) {
    case REPORT_ISOLATE_FAILED:
        send_failed(STAGE_ISOLATE, report.value);
        break;
    case REPORT_EXEC_FAILED:
        send_failed(STAGE_EXEC, report.value);
        break;
    case REPORT_STARTED:
        agent.started_us = report.started_us;
        put_u32(pid, (uint32_t)report.value);
        send_control(STARTED, pid, sizeof pid);
        break;
    case REPORT_EXITED:
        if (agent.main_exiting)
            break;
        agent.has_status = true;
        agent.wait_status = report.value;
        agent.cpu_us = report.cpu_us;
        agent.max_memory = report.max_rss_bytes;
        break;
    }
}

/* REST: return to READY after a command that another may follow. The host sends it after all frames of that command. A
 * warm-up's files are discarded. */
void finish_command(void)
{
    destroy_processes(&agent.job);
    agent.main_exiting = false;
    close_streams(&agent.streams);
    streams_init(&agent.streams, 0, agent.input);
    if (agent.warm_up && agent.has_script)
        unmount_script();
    agent.phase = READY;
    send_control(RESTED, NULL, 0);
}

static bool is_drained(enum stream stream)
{
    int waiting;
    int fd = agent.streams.output_fd[stream];
    return fd < 0 || (ioctl(fd, FIONREAD, &waiting) == 0 && waiting == 0);
}

/* Usage, measured by the job's cgroup where it has one, by its reaper otherwise. Returns the number of OOM kills. */
static uint64_t read_usage(const struct processes *job)
{
    if (!job->isolated)
        return 0;
    uint64_t cpu_us = read_number(job->cgroup, "cpu.stat", "usage_usec ");
    uint64_t peak = read_number(job->cgroup, "memory.peak", NULL);
    agent.cpu_us = cpu_us > agent.cpu_before_us ? cpu_us - agent.cpu_before_us : agent.cpu_us;
    agent.max_memory = peak ? peak : agent.max_memory;
    return read_number(job->cgroup, "memory.events", "oom_kill ");
}

/* Send EXITED on a channel (0: the job). */
void send_exited(uint16_t channel, int wait_status, const struct usage *usage)
{
    bool signalled = WIFSIGNALED(wait_status);
    uint8_t payload[40] = {0};
    put_u32(payload, signalled ? 0 : (uint32_t)WEXITSTATUS(wait_status));
    put_u32(payload + 4, signalled ? (uint32_t)WTERMSIG(wait_status) : 0);
    put_u32(payload + 8, (uint32_t)usage->oom_kills);
    put_u64(payload + 16, usage->cpu_us);
    put_u64(payload + 24, usage->max_memory);
    put_u64(payload + 32, usage->run_us);
    send_on(channel, EXITED, NONE, payload, sizeof payload);
}

/* Send EXITED once all processes have ended and their streams are read to the end. When only artifacts follow in this
 * machine, the main process's exit suffices, with its output read. */
void report_exit(void)
{
    const struct streams *streams = &agent.streams;
    bool all_ended = agent.job.report_fd < 0 && streams->output_fd[STDOUT] < 0 && streams->output_fd[STDERR] < 0;
    bool last_command = !agent.keep && !agent.warm_up;
    bool main_exited = last_command && agent.main_exiting && agent.started_us;
    bool main_ended = main_exited && is_drained(STDOUT) && is_drained(STDERR);
    if (agent.phase != RUNNING || (!all_ended && !main_ended))
        return;
    uint64_t oom_kills = read_usage(&agent.job);
    close_streams(&agent.streams);
    agent.phase = agent.keep || agent.warm_up ? RESTING : ENDED;
    struct usage usage = {oom_kills, agent.cpu_us, agent.max_memory, agent.ended_us - agent.started_us};
    send_exited(0, agent.wait_status, &usage);
}

void signal_job(uint8_t signal_number)
{
    if (agent.phase != RUNNING || agent.job.reaper <= 0 || signal_number == 0 || signal_number > 64)
        return; /* the job ended meanwhile */
    if (signal_number == SIGKILL)
        kill(agent.job.reaper, SIGKILL);
    else if (agent.job.control_fd >= 0 && write(agent.job.control_fd, &signal_number, 1) < 0)
        log_line("signal: %s", strerror(errno));
}
