/* The agent's shared state, and the functions that each file offers to the others.
 * The state is static: nothing is allocated once the machine has booted. */
#ifndef BELLJAR_AGENT_H
#define BELLJAR_AGENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "wire.h"

enum etc { ETC_HOSTNAME, ETC_HOSTS, ETC_MACHINE_ID, ETC_FILES };

enum {
    CHUNK = 64 * 1024,                           /* maximum bytes of output in one frame */
    CONTROL_RESERVE = 4 * 1024,                  /* bytes of the outgoing buffer for frames other than output */
    OUT_SIZE = 3 * (HEADER_SIZE + CHUNK) + CONTROL_RESERVE,
    IN_SIZE = 2 * (HEADER_SIZE + MAX_PAYLOAD),
    ARENA_SIZE = 1280 * 1024,                    /* all arguments, environment strings and the working folder */
    MAX_STRINGS = 8192,
    PIPE_SIZE = 256 * 1024,
    MAX_DEPTH = 128,                             /* folders below the working folder that are walked */
    MEMORY_RESERVE = 32 * 1024 * 1024,           /* maximum of the machine's memory that the job may not use */
    MAX_PREPARED = 8,
    MAX_NAME = 31,                               /* bytes of a prefork program's name */
    COMMAND_FD = 3,                              /* a prefork program reads its command here */
    PROGRAM_FD = 4,                              /* the prefork program's source */
};

/* Bytes that the agent sends to a reaper on its control pipe; any other byte is a signal number for the job. */
enum { CONTROL_EXEC = 0, CONTROL_PREFORK = 0xFF };

/* Reports of a reaper (the job's own PID 1) to the agent. */
enum report_type {
    REPORT_EXEC_FAILED = 1,
    REPORT_STARTED = 2,
    REPORT_EXITED = 3,
    REPORT_ISOLATE_FAILED = 4,
    REPORT_PREPARED = 5,
};
struct report {
    uint32_t type; /* enum report_type */
    int32_t value; /* errno, pid, or wait status */
    uint64_t cpu_us;
    uint64_t max_rss_bytes;
    uint64_t started_us; /* measured by the reaper: the agent may read this late */
};

enum phase { WAITING_WELCOME, READY, PREPARING, SUSPENDED_NOW, RUNNING, RESTING, ENDED, COLLECTING };

/* The processes of one job and the agent's ends of their pipes. A prepared set waits for the job's command. */
struct processes {
    pid_t reaper, main; /* main: the prefork program's process; 0 without one */
    int report_fd, control_fd, command_fd;
    int stdin_fd;
    int output_fd[STREAMS];
    bool isolated;
    char cgroup[32];
    char prefork[MAX_NAME + 1]; /* name of the prefork program that waits; empty for none */
};

struct agent {
    bool is_init;
    int port; /* the byte stream to the host */
    int etc[ETC_FILES]; /* opened before a snapshot, which shortens the time until a clone has its identity */
    int listener; /* accepts the host's connection after a snapshot; -1 without vsock */
    enum phase phase;
    uint64_t last_received_ms;
    uint32_t silence_ms;

    uint8_t in[IN_SIZE];
    size_t in_len;
    uint8_t out[OUT_SIZE];
    size_t out_start, out_len; /* bytes out_start .. out_start + out_len wait to be written */

    char arena[ARENA_SIZE];
    size_t arena_len;
    char *argv[MAX_STRINGS + 1], *envp[MAX_STRINGS + 1];
    size_t argc, envc;

    struct processes job, prepared[MAX_PREPARED];
    size_t prepared_count;
    unsigned cgroup_count; /* cgroups created so far: each name is used once */
    rlim_t stack_gap;      /* see choose_layout; 0: the kernel randomizes prefork programs too */
    unsigned mount_count;  /* mounts of the script's disk so far: names the working folder's layer */
    bool has_script;       /* the script's disk is mounted */
    bool has_home;         /* the job's home folder exists */
    bool has_secrets;      /* the folder of secrets is mounted */
    uint64_t script_bytes, layer_bytes; /* parts of the script's disk; layer_bytes 0: one part */
    char layer_folder[MAX_LAYER_PATH + 1]; /* the layer is mounted over this folder */
    bool keep, warm_up;
    const char *prefork_folder;
    uint64_t credit[STREAMS];
    bool discard[STREAMS];
    uint8_t stdin_data[STDIN_WINDOW];
    size_t stdin_start, stdin_len;
    bool stdin_ended;
    int wait_status;
    bool has_status;
    int exits_fd; /* netlink socket with process exits; -1 when the kernel has no taskstats */
    bool main_exiting; /* the job's main process has started to exit */
    uint64_t started_us, ended_us, cpu_us, cpu_before_us, max_memory;
    char working_folder[MAX_PATH_BYTES];
    char work_layer[32]; /* upper layer of the working folder: files the job wrote */

    uint8_t discarded[CHUNK]; /* target for reads of output that the host discards */
};

extern struct agent agent;

/* How a reaper's child is set up. */
struct child {
    uint32_t uid, gid;
    bool isolated, fixed_layout;
    int stdio[3], cgroup_fd, command_fd, program_fd; /* the last two: -1 unless it is a prefork program */
};

/* A reaper's ends of its pipes to the agent. */
struct reaper_ends {
    int report_fd, control_fd, command_fd;
};

/* The command that such a child executes, and its working folder. */
struct command {
    const char *folder;
    char **argv, **envp;
};

/* The numbers in RUN and PREPARE. */
struct request {
    uint32_t uid, gid, max_processes, flags;
};

struct sockaddr_vm;

/* machine.c */
uint64_t now_us(void);
void log_line(const char *format, ...);
_Noreturn void end_machine(void);
_Noreturn void die(const char *subject);
void agent_init(void);

/* files.c */
#define cleanup_close __attribute__((cleanup(close_fd))) /* closes a descriptor on every return of its function */
void set_nonblocking(int fd);
void close_fd(int *fd);
int release_fd(int *fd);
bool close_all_but(int *kept, size_t count);
bool write_file(const char *path, const char *text);
uint64_t read_number(const char *folder, const char *name, const char *key);
bool write_number(const char *folder, const char *name, uint64_t number);
bool read_fully(int fd, void *data, size_t size);
bool write_fully(int fd, const void *data, size_t size);
int open_below(const char *root, const char *path, bool create);
struct fd_path {
    char text[32];
};
struct fd_path path_of(int fd);
bool mount_below(const char *source, const char *path, const char *type, unsigned long flags, const char *data);

/* frame_stream.c */
void flush_frames(void);
uint8_t *output_space(size_t payload);
void put_header(uint8_t *p, uint32_t length, enum frame_type type, enum stream stream);
void send_control(enum frame_type type, const uint8_t *payload, size_t length);
void send_failed(enum stage stage, int error);
void send_hello(void);
void handle_frames(void);
void read_frames(void);

/* vsock.c */
int open_listener(void);
bool is_host(const struct sockaddr_vm *peer);
void accept_host(void);

/* boot.c */
void make_folder(const char *path);
void boot(void);

/* network.c */
void configure_network(const uint8_t *payload, size_t length);

/* identity.c */
void set_clock(uint64_t unix_ns);
void open_etc(void);
void set_identity(const uint8_t *payload, size_t length);

/* exits.c */
void subscribe_exits(void);
void read_exits(void);

/* mounts.c */
void set_layer(const uint8_t *payload, size_t length);
int mount_script(uint32_t uid, uint32_t gid);
void make_home(uint32_t uid, uint32_t gid);
void unmount_script(void);

/* secrets.c */
void store_secret(const uint8_t *payload, size_t length);

/* cgroup.c */
int make_job_cgroup(struct processes *job, uint32_t max_processes);

/* memory_layout.c */
void choose_layout(void);
void set_randomization(bool on);
bool request_layout(void);
int resume_traced(pid_t child, bool *reaped);

/* spawn.c */
pid_t spawn(const struct child *how, const struct command *command);

/* privileges.c */
bool drop_privileges(uint32_t uid);

/* reaper.c */
_Noreturn void reaper_main(const struct child *how, const struct command *prefork, struct reaper_ends ends);

/* processes.c */
void processes_init(struct processes *job);
int start_processes(struct processes *job, const struct request *request);
void destroy_processes(struct processes *job);
bool claim_prepared(struct processes *job, const char *prefork);
void clear_strings(void);
bool send_command(struct processes *job, bool prefork);

/* prepare.c */
struct request read_request(const uint8_t *payload, size_t length, char *prefork);
void prepare(const uint8_t *payload, size_t length);
void read_prepared(void);

/* job.c */
void start_job(const uint8_t *payload, size_t length);
void read_report(void);
void finish_command(void);
void report_exit(void);
void signal_job(uint8_t signal_number);

/* stdio.c */
void forward_output(enum stream stream);
void receive_stdin(const uint8_t *data, size_t length);
void forward_stdin(void);

/* globs.c */
bool glob_matches(const char *glob, const char *path);
bool glob_may_match_below(const char *glob, const char *folder);

/* artifacts.c */
void artifacts_init(void);
void start_collecting(const uint8_t *payload, size_t length);
bool can_collect(void);
void collect_slice(void);

/* event_loop.c */
void start_serving(void);
void serve_once(int max_wait_ms);

/* dispatch.c */
void handle_frame(enum frame_type type, enum stream stream, uint8_t *payload, size_t length);

#endif
