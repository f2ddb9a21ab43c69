/* The common payload of RUN and PREPARE, and sets of processes that wait for a job.
 * Every set replies to the host with PREPARED or FAILED. */
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Parse the payload of RUN and PREPARE: numbers, a path, a zero, the name of a prefork program. */
struct request read_request(const uint8_t *payload, size_t length, char *prefork)
{
    const uint8_t *text = payload + 16, *end = length > 16 ? memchr(text, 0, length - 16) : NULL;
    size_t name_length = end ? (size_t)(payload + length - end - 1) : 0;
    bool isolated = length > 16 && (get_u32(payload + 12) & RUN_ISOLATED);
    /* Only PID 1 may mount: in tests the agent runs on a developer's host. */
    if (agent.phase != READY || !end || end - text >= MAX_PATH_BYTES || name_length > MAX_NAME ||
        (isolated && !agent.is_init)) {
        errno = EPROTO;
        die("unexpected RUN or PREPARE from host");
    }
    memcpy(agent.working_folder, text, (size_t)(end - text) + 1);
    memcpy(prefork, end + 1, name_length);
    prefork[name_length] = 0;
    return (struct request){get_u32(payload), get_u32(payload + 4), get_u32(payload + 8), get_u32(payload + 12)};
}

/* PREPARE: start a set of processes that waits for a command. */
void prepare(const uint8_t *payload, size_t length)
{
    struct processes *job = &agent.prepared[agent.prepared_count];
    char prefork[MAX_NAME + 1];
    struct request request = read_request(payload, length, prefork);
    if (agent.prepared_count == MAX_PREPARED) {
        errno = E2BIG;
        die("too many PREPARE from host");
    }
    processes_init(job);
    memcpy(job->prefork, prefork, sizeof prefork);
    job->isolated = (request.flags & RUN_ISOLATED) != 0;
    if (prefork[0]) {
        choose_layout();
        subscribe_exits();
    }
    set_randomization(false);
    int error = start_processes(job, &request);
    clear_strings();
    if (error) {
        destroy_processes(job);
        send_failed(STAGE_ISOLATE, error);
        set_randomization(true);
        agent.phase = READY;
        return;
    }
    agent.prepared_count++;
    agent.phase = PREPARING;
}

/* Reply to PREPARE: without a report the set waits, otherwise the report says why it failed. */
static void finish_prepare(const struct report *failure)
{
    struct processes *job = &agent.prepared[agent.prepared_count - 1];
    if (failure) {
        destroy_processes(job);
        agent.prepared_count--;
        send_failed(failure->type == REPORT_EXEC_FAILED ? STAGE_EXEC : STAGE_ISOLATE, failure->value);
    } else {
        job->main = job->prefork[0] && job->isolated ? (pid_t)read_number(job->cgroup, "cgroup.procs", NULL) : 0;
        send_control(PREPARED, NULL, 0);
    }
    set_randomization(true);
    agent.phase = READY;
}

/* A prefork program writes one byte when it waits; a reaper without one sends a report. */
void read_prepared(void)
{
    struct processes *job = &agent.prepared[agent.prepared_count - 1];
    struct report report = {.type = REPORT_EXEC_FAILED, .value = ECHILD};
    uint8_t byte;
    if (read(job->report_fd, &report, sizeof report) >= 0) {
        finish_prepare(report.type == REPORT_PREPARED ? NULL : &report);
        return;
    }
    if (recv(job->command_fd, &byte, 1, MSG_DONTWAIT) == 1)
        finish_prepare(NULL);
}
