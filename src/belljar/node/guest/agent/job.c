/* The job: its start, its reports, its end. */
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
        die("RUN from host");
    }
    bool isolated = (request.flags & RUN_ISOLATED) != 0;
    agent.keep = (request.flags & RUN_KEEP) != 0;
    agent.rehearse = (request.flags & RUN_REHEARSE) != 0;
    agent.started_us = 0;
    agent.has_status = agent.leaving = false;
    int error;
    if (isolated && !agent.has_script && ((error = mount_script(request.uid, request.gid)))) {
        send_failed(STAGE_SCRIPT, error);
        return;
    }
    bool preforked = prefork[0] && take_prepared(&agent.job, prefork);
    if (!preforked && !take_prepared(&agent.job, "")) {
        processes_init(&agent.job);
        agent.job.isolated = isolated;
        if ((error = start_processes(&agent.job, &request))) {
            drop_processes(&agent.job);
            send_failed(STAGE_ISOLATE, error);
            return;
        }
    }
    if (!preforked)
        agent.job.main = 0;
    agent.cpu_before_us = isolated ? read_number(agent.job.cgroup, "cpu.stat", "usage_usec ") : 0;
    if (!give_order(&agent.job, preforked)) {
        send_failed(STAGE_ISOLATE, errno);
        return;
    }
    forget_strings();
    agent.phase = RUNNING;
}

void read_report(void)
{
    struct report report;
    struct processes *job = &agent.job;
    ssize_t n = read(job->report_fd, &report, sizeof report);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != sizeof report) { /* the reaper is gone: reap it; without a report it was killed, and the job with it */
        close_fd(&job->report_fd);
        close_fd(&job->control_fd);
        if (waitpid(job->reaper, NULL, 0) < 0)
            die("waitpid");
        job->reaper = 0;
        agent.ended_us = now_us();
        if (!agent.has_status)
            agent.wait_status = SIGKILL;
        if (agent.phase == RUNNING && !agent.started_us) /* killed before it could start anything */
            send_failed(STAGE_ISOLATE, ECHILD);
        return;
    }
    uint8_t pid[4];
    switch (report.kind) {
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
        if (agent.leaving)
            break;
        agent.has_status = true;
        agent.wait_status = report.value;
        agent.cpu_us = report.cpu_us;
        agent.max_memory = report.max_rss_bytes;
        break;
    }
}

/* After a command that another may follow: back to waiting for words. The host asks for it once it has sent all that
 * belonged to this one. What a rehearsal did is undone. */
void rest(void)
{
    drop_processes(&agent.job);
    agent.leaving = false;
    agent.stdin_len = agent.stdin_start = 0;
    agent.stdin_ended = false;
    memset(agent.credit, 0, sizeof agent.credit);
    memset(agent.discard, 0, sizeof agent.discard);
    if (agent.rehearse && agent.has_script)
        unmount_script();
    agent.phase = READY;
    send_control(RESTED, NULL, 0);
}

static bool is_drained(enum stream stream)
{
    int waiting;
    return agent.job.output_fd[stream] < 0 || (ioctl(agent.job.output_fd[stream], FIONREAD, &waiting) == 0 && waiting == 0);
}

/* Once the processes are gone and their streams are read to the end, say how it was; or, when nothing follows in this
 * machine but its artifacts, once the main process has done all that it will do and what it wrote is read. */
void finish_if_ended(void)
{
    struct processes *job = &agent.job;
    bool gone = job->report_fd < 0 && job->output_fd[STDOUT] < 0 && job->output_fd[STDERR] < 0;
    bool left = agent.leaving && agent.started_us && !agent.keep && !agent.rehearse && is_drained(STDOUT) && is_drained(STDERR);
    if (agent.phase != RUNNING || (!gone && !left))
        return;
    uint64_t oom_kills = 0;
    if (job->isolated) {
        uint64_t cpu_us = read_number(job->cgroup, "cpu.stat", "usage_usec ");
        uint64_t peak = read_number(job->cgroup, "memory.peak", NULL);
        oom_kills = read_number(job->cgroup, "memory.events", "oom_kill ");
        agent.cpu_us = cpu_us > agent.cpu_before_us ? cpu_us - agent.cpu_before_us : agent.cpu_us;
        agent.max_memory = peak ? peak : agent.max_memory;
    }
    bool signalled = WIFSIGNALED(agent.wait_status);
    uint8_t payload[40] = {0};
    put_u32(payload, signalled ? 0 : (uint32_t)WEXITSTATUS(agent.wait_status));
    put_u32(payload + 4, signalled ? (uint32_t)WTERMSIG(agent.wait_status) : 0);
    put_u32(payload + 8, (uint32_t)oom_kills);
    put_u64(payload + 16, agent.cpu_us);
    put_u64(payload + 24, agent.max_memory);
    put_u64(payload + 32, agent.ended_us - agent.started_us);
    close_fd(&job->stdin_fd);
    close_fd(&job->output_fd[STDOUT]);
    close_fd(&job->output_fd[STDERR]);
    agent.phase = agent.keep || agent.rehearse ? RESTING : ENDED;
    send_control(EXITED, payload, sizeof payload);
}

void signal_job(uint8_t signal_number)
{
    if (agent.phase != RUNNING || agent.job.reaper <= 0 || signal_number == 0 || signal_number > 64)
        return; /* it ended meanwhile */
    if (signal_number == SIGKILL)
        kill(agent.job.reaper, SIGKILL);
    else if (agent.job.control_fd >= 0 && write(agent.job.control_fd, &signal_number, 1) < 0)
        say("belljar-agent: signal: %s", strerror(errno));
}
