/* What the agent's files share: its state, and the functions of each file that others call. */
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
    CHUNK = 64 * 1024,                           /* most bytes of output in one frame */
    CONTROL_ROOM = 4 * 1024,                     /* kept free in the outgoing buffer for frames that are not output */
    OUT_SIZE = 3 * (HEADER_SIZE + CHUNK) + CONTROL_ROOM,
    IN_SIZE = 2 * (HEADER_SIZE + MAX_PAYLOAD),
    ARENA_SIZE = 1280 * 1024,                    /* all arguments and environment strings, and the working folder */
    MAX_STRINGS = 8192,
    PIPE_SIZE = 256 * 1024,
    MAX_DEPTH = 128,                             /* of folders below the working folder that are searched */
    MEMORY_RESERVE = 32 * 1024 * 1024,           /* of the machine's memory that is not the job's, at most */
    MAX_PREPARED = 8,
    MAX_NAME = 31,                               /* of a prefork program */
    ORDER_FD = 3,                                /* where a prefork program reads its orders */
    PROGRAM_FD = 4,                              /* the prefork program's own text */
};

/* What the agent tells a reaper, in one byte; what is no order is a signal for the job. */
enum { ORDER_EXEC = 0, ORDER_PREFORK = 0xFF };

/* What the reaper (the job's own PID 1) tells the agent. */
enum report_kind {
    REPORT_EXEC_FAILED = 1,
    REPORT_STARTED = 2,
    REPORT_EXITED = 3,
    REPORT_ISOLATE_FAILED = 4,
    REPORT_PREPARED = 5,
};
struct report {
    uint32_t kind;
    int32_t value; /* errno, pid, or wait status */
    uint64_t cpu_us;
    uint64_t max_rss_bytes;
    uint64_t started_us; /* by the reaper's clock: the agent may come to reading this late */
};

enum phase { WAITING_WELCOME, READY, PREPARING, SUSPENDED_NOW, RUNNING, RESTING, ENDED, COLLECTING };

/* The processes of one job and the agent's ends of what leads to them. Prepared, they wait for the job's words. */
struct processes {
    pid_t reaper, main; /* the latter only of a prefork program, else 0 */
    int report_fd, control_fd, order_fd;
    int stdin_fd;
    int output_fd[STREAMS];
    bool isolated;
    char cgroup[32];
    char prefork[MAX_NAME + 1]; /* the program that waits, empty for none */
};

struct agent {
    bool is_init;
    int port; /* the byte stream to the host */
    int etc[ETC_FILES]; /* opened before a snapshot, so that a clone has less to do until it knows who it is */
    int listener; /* where a host may come again after a snapshot; -1 where it cannot */
    enum phase phase;
    uint64_t last_heard_ms;
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
    unsigned made;     /* how many sets of processes, for the names of their cgroups */
    rlim_t stack_gap;  /* see choose_layout; 0 where prefork programs are laid out as the kernel likes */
    unsigned mounted;  /* how often the script's disk was mounted, for the name of the working folder's layer */
    bool has_script;   /* it is mounted now */
    bool has_home;     /* the job's home folder is there */
    uint64_t script_bytes, layer_bytes; /* how the script's disk is divided; no layer_bytes: it is not */
    char layer_folder[MAX_LAYER_PATH + 1]; /* what the layer is laid over */
    bool keep, rehearse;
    const char *prefork_folder;
    uint64_t credit[STREAMS];
    bool discard[STREAMS];
    uint8_t stdin_data[STDIN_WINDOW];
    size_t stdin_start, stdin_len;
    bool stdin_ended;
    int wait_status;
    bool has_status;
    int exits_fd; /* where the kernel says which process exits; -1 where it does not */
    bool leaving; /* the job's main process has begun to exit */
    uint64_t started_us, ended_us, cpu_us, cpu_before_us, max_memory;
    char working_folder[MAX_PATH_BYTES];
    char work_layer[32]; /* where what the job writes into its working folder really lies */

    uint8_t dropped[CHUNK]; /* output that the host does not want is read into this */
};

extern struct agent agent;

/* What the child of a reaper is to become. */
struct child {
    uint32_t uid, gid;
    bool isolated, laid_out;
    int stdio[3], cgroup_fd, order_fd, program_fd; /* the last two only for a prefork program, else -1 */
};

/* A reaper's ends of what leads to the agent. */
struct reaper_ends {
    int report_fd, control_fd, order_fd;
};

/* What such a child executes, and where. */
struct command {
    const char *folder;
    char **argv, **envp;
};

/* What RUN and PREPARE have in common. */
struct request {
    uint32_t uid, gid, max_processes, flags;
};

struct sockaddr_vm;

/* machine.c */
uint64_t now_us(void);
void say(const char *format, ...);
_Noreturn void end_machine(void);
_Noreturn void die(const char *what);
void start_empty(void);

/* files.c */
#define cleanup_close __attribute__((cleanup(close_fd))) /* of a descriptor: closed wherever its function returns */
void set_nonblocking(int fd);
void close_fd(int *fd);
int take_fd(int *fd);
bool close_all_but(int *kept, size_t count);
bool write_file(const char *path, const char *text);
uint64_t read_number(const char *folder, const char *name, const char *key);
bool write_number(const char *folder, const char *name, uint64_t number);
bool read_fully(int fd, void *data, size_t size);
bool write_fully(int fd, const void *data, size_t size);
int open_below(const char *root, const char *path, bool make);
struct fd_path {
    char text[32];
};
struct fd_path path_of(int fd);
bool mount_below(const char *source, const char *path, const char *type, unsigned long flags, const char *data);

/* link.c */
void flush_out(void);
uint8_t *output_room(size_t payload);
void put_header(uint8_t *p, uint32_t length, enum kind kind, enum stream stream);
void send_control(enum kind kind, const uint8_t *payload, size_t length);
void send_failed(enum stage stage, int error);
void send_hello(void);
void handle_input(void);
void read_port(void);

/* vsock.c */
int open_listener(void);
bool is_host(const struct sockaddr_vm *peer);
void accept_host(void);

/* boot.c */
void make_folder(const char *path);
void boot(void);

/* network.c */
void set_network_up(const uint8_t *payload, size_t length);

/* identity.c */
void set_clock(uint64_t unix_ns);
void open_etc(void);
void take_identity(const uint8_t *payload, size_t length);

/* exits.c */
void subscribe_exits(void);
void read_exits(void);

/* mounts.c */
void take_layer(const uint8_t *payload, size_t length);
int mount_script(uint32_t uid, uint32_t gid);
void make_home(uint32_t uid, uint32_t gid);
void unmount_script(void);

/* cgroup.c */
int make_job_cgroup(struct processes *job, uint32_t max_processes);

/* layout.c */
void choose_layout(void);
void set_randomization(bool on);
bool ask_for_layout(void);
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
void drop_processes(struct processes *job);
bool take_prepared(struct processes *job, const char *prefork);
void forget_strings(void);
bool give_order(struct processes *job, bool prefork);

/* prepare.c */
struct request read_request(const uint8_t *payload, size_t length, char *prefork);
void prepare(const uint8_t *payload, size_t length);
void prepared(const struct report *report);
void hear_prepared(void);

/* job.c */
void start_job(const uint8_t *payload, size_t length);
void read_report(void);
void rest(void);
void finish_if_ended(void);
void signal_job(uint8_t signal_number);

/* streams.c */
void forward_output(enum stream stream);
void take_stdin(const uint8_t *data, size_t length);
void forward_stdin(void);

/* globs.c */
bool glob_matches(const char *glob, const char *path);
bool glob_may_match_below(const char *glob, const char *folder);

/* artifacts.c */
void artifacts_init(void);
void order_collect(const uint8_t *payload, size_t length);
bool may_collect(void);
void collect_piece(void);

/* loop.c */
void begin_serving(void);
void serve_once(int most_ms);

/* frames.c */
void handle_frame(enum kind kind, enum stream stream, uint8_t *payload, size_t length);

#endif
