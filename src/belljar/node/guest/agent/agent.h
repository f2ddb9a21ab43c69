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
    MAX_COMMANDS = 256,    /* of a session that run at a time */
    MAX_CONNECTIONS = 128, /* to ports */
    MAX_WIDE = 8,          /* channels with a wide window for their input */
    TERMINAL_DRAIN_MS = 50, /* without output, after which an exited command's terminal has no more */
    MAX_CHANNELS = 1024,   /* with commands that have ended, whose exits are kept */
    MAX_DESCRIPTORS = 4096, /* of the agent in a session: more than three for each channel */
    CANCEL_MS = 1000,      /* after which a file operation that was cancelled is killed */
    MAX_NAME = 31,                               /* bytes of a prefork program's name */
    COMMAND_FD = 3,                              /* a prefork program reads its command here */
    PROGRAM_FD = 4,                              /* the prefork program's source */
};

/* Bytes that the agent sends to a reaper on its control pipe; any other byte is a signal number for the job. */
enum { CONTROL_EXEC = 0, CONTROL_SESSION = 0xFE, CONTROL_PREFORK = 0xFF };

/* Reports of a reaper (the job's own PID 1) to the agent. */
enum report_type {
    REPORT_EXEC_FAILED = 1,
    REPORT_STARTED = 2,
    REPORT_EXITED = 3,
    REPORT_ISOLATE_FAILED = 4,
    REPORT_PREPARED = 5,
};
struct report {
    uint16_t type; /* enum report_type */
    uint16_t channel; /* of a session's command; 0: the job */
    int32_t value; /* errno, pid, or wait status */
    uint64_t cpu_us;
    uint64_t max_rss_bytes;
    uint64_t started_us; /* measured by the reaper: the agent may read this late */
};

enum phase { WAITING_WELCOME, READY, PREPARING, SUSPENDED_NOW, RUNNING, RESTING, ENDED, COLLECTING, IN_SESSION };

/* The streams of a command or of a connection: descriptors, what the host granted, and input that waits. */
struct streams {
    uint16_t channel;
    int input_fd, output_fd[STREAMS]; /* -1: closed */
    uint64_t credit[STREAMS];
    uint64_t limit[STREAMS]; /* bytes that are still forwarded; UINT64_MAX: all */
    bool discard[STREAMS];
    uint8_t *input;
    size_t window; /* bytes of `input` */
    size_t input_start, input_len;
    bool input_ended;
};

/* The processes of one job and the agent's ends of their pipes. A prepared set waits for the job's command. */
struct processes {
    pid_t reaper, main; /* main: the prefork program's process; 0 without one */
    int report_fd, control_fd, command_fd;
    int stdin_fd, output_fd[STREAMS]; /* while the processes wait; see struct streams */
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
    uint8_t input[STDIN_WINDOW];
    struct streams streams; /* of the job, which is channel 0 */
    int wait_status;
    bool has_status;
    bool in_session, attached; /* a session exists; the host knows its channels, so that their frames may be sent */
    uint16_t strings_channel;  /* the strings in the arena are for this channel */
    uint32_t meter_ms;         /* interval of USAGE; 0: none */
    uint64_t metered_us, session_since_us, session_oom_kills;
    uint32_t session_uid;
    int exits_fd; /* netlink socket with process exits; -1 when the kernel has no taskstats */
    bool main_exiting; /* the job's main process has started to exit */
    uint64_t started_us, ended_us, cpu_us, cpu_before_us, max_memory;
    char working_folder[MAX_PATH_BYTES];
    char work_layer[32]; /* upper layer of the working folder: files the job wrote */

    uint8_t discarded[CHUNK]; /* target for reads of output that the host discards */
};

extern struct agent agent;

/* What the agent requests of the reaper of a session; an EXEC is followed by its text, and carries descriptors. */
enum request_type { REQUEST_EXEC, REQUEST_SIGNAL };
struct session_request {
    uint16_t type, channel, flags; /* flags: EXEC_TERMINAL, EXEC_FILES */
    uint16_t columns, rows, signal;
    uint32_t uid, gid;
    uint32_t size, argc;
};

enum channel_state { CHANNEL_FREE, CHANNEL_STARTING, CHANNEL_RUNNING, CHANNEL_ENDED, CHANNEL_LINGERING,
                     CHANNEL_CONNECTING, CHANNEL_CONNECTED };

/* A channel of a session: a command (also when it has ended: its exit waits for the host), or a connection to a port.
 * LINGERING: the host has closed it, but processes that the command left still write, or are in its cgroup. */
struct channel {
    enum channel_state state;
    bool terminal, files, used_buffer, end_sent;
    size_t received; /* bytes of input, until it is much */
    bool closing; /* the host has closed it while its command ran: its exit is not wanted */
    struct streams streams;
    uint32_t pid;
    struct report exit;
    uint64_t started_us, ended_us, idle_since_us;
    uint64_t cancelled_us; /* when a closing file operation was last cancelled */
    unsigned cgroup; /* number of its cgroup; 0: none */
    uint32_t oom_kills;
    uint64_t order;  /* of its opening */
    size_t poll_at;  /* index of its first descriptor in the event loop */
};

/* How a reaper's child is set up. */
struct child {
    uint32_t uid, gid;
    bool isolated, fixed_layout;
    bool terminal; /* its standard streams are a terminal, which becomes its controlling one */
    bool files;    /* it is a file operation (file_operation.c), no program */
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

/* What a command used, as EXITED tells it. */
struct usage {
    uint64_t oom_kills, cpu_us, max_memory, run_us;
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
void put_header(uint8_t *p, uint32_t length, enum frame_type type, enum stream stream, uint16_t channel);
void send_on(uint16_t channel, enum frame_type type, enum stream stream, const uint8_t *payload, size_t length);
void send_control(enum frame_type type, const uint8_t *payload, size_t length);
void send_failure(uint16_t channel, enum stage stage, int error);
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
bool limit_to_bounding_set(void);

/* reaper.c */
struct command read_command_text(int fd, uint32_t size, uint32_t max_argc);
_Noreturn void reaper_main(const struct child *how, const struct command *prefork, struct reaper_ends ends);

/* processes.c */
void processes_init(struct processes *job);
int start_processes(struct processes *job, const struct request *request);
void destroy_processes(struct processes *job);
bool claim_prepared(struct processes *job, const char *prefork);
void clear_strings(void);
size_t pack_command(char *text);
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
void send_exited(uint16_t channel, int wait_status, const struct usage *usage);
void signal_job(uint8_t signal_number);

/* stdio.c */
void streams_init(struct streams *streams, uint16_t channel, uint8_t *buffer);
void close_streams(struct streams *streams);
bool can_forward(const struct streams *streams, enum stream stream);
bool can_feed(const struct streams *streams);
int forward_output(struct streams *streams, enum stream stream);
size_t pass_input(struct streams *streams, const uint8_t *data, size_t length);
void receive_input(struct streams *streams, const uint8_t *data, size_t length);
void grant_input(const struct streams *streams, size_t size);
void forward_input(struct streams *streams);

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
void handle_frame(enum frame_type type, enum stream stream, uint16_t channel, uint8_t *payload, size_t length);

/* channel_table.c */
struct pollfd;
struct channel *find_channel(uint16_t id);
struct channel *open_channel(uint16_t id, enum channel_state state);
void release_buffer(struct channel *channel);
bool widen_input(struct channel *channel);
void free_channel(struct channel *channel);
void release_channel(struct channel *channel);
void send_closed(uint16_t id, int error);
void for_each_channel(void (*visit)(struct channel *));
size_t channel_count(void);
struct channel *channel_at(size_t i);

/* channel_events.c */
size_t poll_channels(struct pollfd *fds);
void handle_channels(const struct pollfd *fds);
int channels_timeout(void);

/* channel_dispatch.c */
void handle_channel_frame(enum frame_type type, enum stream stream, uint16_t id, uint8_t *payload, size_t length);

/* session.c */
void start_session(const uint8_t *payload, size_t length);
void send_request(const struct session_request *request, const void *text, const int *fds, size_t fd_count);
int end_prepared(void);
void read_session_reports(void);
void list_channels(void);
void detach_channels(void);

/* session_command.c */
void start_session_command(uint16_t id, const uint8_t *payload, size_t length);
void handle_command_report(const struct report *report);
void signal_command(struct channel *channel, uint8_t number, bool descendants);
bool finish_session_command(struct channel *channel);
void send_exit(struct channel *channel);
bool remove_command_cgroup(struct channel *channel);

/* connection.c */
void start_connection(uint16_t id, const uint8_t *payload, size_t length);
void finish_connecting(struct channel *channel);
void finish_connection(struct channel *channel, int error);
void forward_connection_input(struct channel *channel);

/* meter.c */
void set_meter(const uint8_t *payload, size_t length);
int meter_timeout(void);

/* session_reaper.c */
_Noreturn void serve_session(struct reaper_ends ends, const struct child *how, int signals_fd);

/* terminal.c */
int open_terminal(const struct session_request *request, bool isolated, int *peer);
void resize_terminal(int terminal, uint16_t columns, uint16_t rows);
bool send_with_descriptors(int socket, const void *data, size_t size, const int *fds, size_t count);
ssize_t receive_with_descriptors(int socket, void *data, size_t size, int *fds, size_t *count);


#endif
