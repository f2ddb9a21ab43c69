/*
 * Fuzz target for the agent's handling of the host's frames: the agent's own files, with processes, streams and
 * artifacts, and a session's channels get arbitrary bytes in arbitrary pieces. Nothing is executed and nothing is
 * connected: execvpe and connect are replaced (link with -Wl,--wrap=execvpe,--wrap=connect). With a libFuzzer: cc -fsanitize=fuzzer,address,undefined fuzz_agent.c agent's files. Without one,
 * BELLJAR_FUZZ_MAIN adds a main that generates inputs from a seed: fuzz_agent SEED ROUNDS FOLDER. The folder is that
 * artifacts are collected from, and holds the prefork program `p`.
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_execvpe(const char *file, char *const argv[], char *const envp[]);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length);

static size_t strings_of(char *const strings[])
{
    size_t bytes = 0;
    for (; *strings; strings++)
        bytes += strlen(*strings); /* a sanitizer looks at each byte */
    return bytes;
}

/* Replaces every program: a missing one, one that waits for its command as a prefork program does, one that prints, one
 * that exits, one that runs until it is killed. */
int __wrap_execvpe(const char *file, char *const argv[], char *const envp[])
{
    static const char text[5000] = "output";
    char byte;
    if (strchr("woes", file[0]))
        for (int fd = 0; fd < 100; fd++)
            if (fcntl(fd, F_GETFD) == FD_CLOEXEC)
                close(fd); /* as an exec that succeeds does; and signals are no longer the sanitizers' */
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    size_t bytes = strings_of(argv) + strings_of(envp);
    switch (file[0]) {
    case 'w':
        if (write(COMMAND_FD, "w", 1) != 1)
            _exit(1);
        while (read(COMMAND_FD, &byte, 1) == 1)
            ;
        _exit(2);
    case 'o':
        _exit(write(STDOUT_FILENO, text, sizeof text) == sizeof text ? 0 : 3);
    case 'e':
        _exit((int)(bytes % 256));
    case 's':
        alarm(60); /* not for ever, should the agent end before it has killed it */
        for (;;)
            pause();
    default:
        errno = ENOENT;
        return -1;
    }
}

/* Replaces every server: one that is there, one that is not, one that takes its time. */
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    static const int results[] = {0, ECONNREFUSED, EINPROGRESS};
    uint16_t port = 0;
    (void)fd;
    if (length >= 4)
        memcpy(&port, (const uint8_t *)address + 2, sizeof port);
    errno = results[ntohs(port) % 3];
    return errno ? -1 : 0;
}

static void drain(int fd)
{
    static uint8_t buffer[64 * 1024];
    while (read(fd, buffer, sizeof buffer) > 0)
        ;
}

/* Let the agent work until it waits for its host, or for a while: one input waits for its processes a second in all. */
static void settle(int host, int rounds)
{
    static int waits = 1000;
    for (int i = 0; i < rounds; i++) {
        enum phase before = agent.phase;
        bool working = before == PREPARING || before == RUNNING || before == COLLECTING ||
                       (before == IN_SESSION && channel_count() > 0);
        bool busy = working && waits-- > 0;
        serve_once(busy ? 1 : 0);
        drain(host);
        if (!busy)
            return;
    }
}

/* Size of the next piece: mostly a whole frame, so that the agent handles one frame before the next arrives. */
static size_t piece_of(const uint8_t *data, size_t size)
{
    size_t piece = size >= HEADER_SIZE && data[0] % 8 ? HEADER_SIZE + (size_t)get_u32(data) : 1 + data[0] * 7u;
    return piece < size ? piece : size;
}

static _Noreturn void feed(const uint8_t *data, size_t size)
{
    int ends[2], null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, STDERR_FILENO) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        abort();
    agent_init();
    agent.prefork_folder = ".";
    agent.port = ends[1];
    set_nonblocking(ends[0]);
    start_serving();
    while (size > 0) {
        size_t piece = piece_of(data, size);
        for (size_t done = 0; done < piece;) {
            ssize_t n = write(ends[0], data + done, piece - done);
            if (n < 0 && errno != EAGAIN)
                abort();
            done += n > 0 ? (size_t)n : 0;
            settle(ends[0], 1);
        }
        settle(ends[0], 30);
        data += piece;
        size -= piece;
    }
    close(ends[0]);
    for (;;)
        serve_once(100); /* until it meets the end of its stream */
}

/* One process per input: the agent must exit on a bad frame. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        feed(data, size);
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        abort();
    return 0;
}

#ifdef BELLJAR_FUZZ_MAIN
static uint64_t random_state;
static uint8_t flags; /* of the next RUN or PREPARE */
static unsigned credits, inputs; /* numbers of frames of these types so far */
static bool in_session;          /* SESSION was put */
static uint16_t opened;          /* the last channel that was opened */

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static size_t put_text(uint8_t *at, const char *const *texts, size_t count)
{
    const char *text = texts[next_random() % count];
    memcpy(at, text, strlen(text) + 1);
    return strlen(text);
}

#define PUT_ONE_OF(at, ...) \
    put_text(at, (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

/* Write a payload that is nearly always valid for its type, or random bytes. */
static size_t put_payload(uint8_t *at, enum frame_type type)
{
    size_t length;
    if (next_random() % 64 == 0) {
        length = next_random() % (next_random() % 8 ? 40 : 4096);
        for (size_t i = 0; i < length; i++)
            at[i] = (uint8_t)next_random();
        return length;
    }
    memset(at, 0, 64);
    switch (type) {
    case WELCOME:
        memcpy(at, (const uint8_t[]){VERSION, 0, 30, 0}, 4);
        return 16;
    case ARG:
        if (in_session && next_random() % 2)
            return PUT_ONE_OF(at, "stat", "list", "read", "archive", "ports", ".", "x", "deep", "1", "4");
        return PUT_ONE_OF(at, "out", "exit", "out", "exit", "stay", "wait", "wait", "out", "exit", "out", "nothing");
    case ENV:
        return PUT_ONE_OF(at, "A=1", "PATH=/bin", "=", "");
    case PREPARE:
    case RUN:
        put_u32(at + 8, 100);
        at[12] = (uint8_t)(next_random() % 16 ? flags * (1 + next_random() % 2) : next_random());
        length = 17 + PUT_ONE_OF(at + 16, ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "/nowhere");
        return length + PUT_ONE_OF(at + length, "", "", "", "p", "p", "p", "missing", "../p");
    case SESSION:
        put_u32(at + 8, 100);
        return 17;
    case EXEC:
        at[8] = (uint8_t)(next_random() % 8 ? next_random() % 4 : next_random());
        return 16 + PUT_ONE_OF(at + 16, ".", ".", ".", "/nowhere");
    case CONNECT:
        put_u16(at, (uint16_t)(1 + next_random() % 60000));
        put_u16(at + 2, next_random() % 8 ? 4 : (uint16_t)(next_random() % 8));
        return 4;
    case RESIZE:
        put_u32(at, next_random());
        return 4;
    case METER:
        put_u32(at, next_random() % 8 ? 100 : next_random() % 200);
        return 4;
    case STDIN:
        return inputs++ % 2 ? 0 : 1 + next_random() % 4096;
    case CREDIT:
        put_u32(at, next_random() % 8 ? 100000 : next_random());
        return 4;
    case SIGNAL:
        at[0] = (uint8_t)(next_random() % 8 ? 9 : next_random() % 70);
        at[1] = next_random() % 2;
        return in_session ? 2 : 1;
    case COLLECT:
        put_u32(at, next_random() % 4 ? 1 << 20 : next_random() % 100);
        put_u32(at + 8, next_random() % 4 ? 100 : next_random() % 3);
        length = 16 + PUT_ONE_OF(at + 16, "**", "*", "**/**/**/x", "deep", "[", "!**", "a/./b//c/", "", "**/?");
        if (next_random() % 2)
            length += 1 + PUT_ONE_OF(at + length + 1, "!**/x", "*/*", "**");
        return length;
    case IDENTITY:
        return SEED_BYTES + 7;
    case NETWORK:
        at[10] = 30;
        return 24;
    case SECRET:
        put_u32(at, 1000);
        length = 8 + PUT_ONE_OF(at + 8, "TOKEN", "tls.key", "TOKEN", "", "../up", "a/b", ".");
        return length + (next_random() % 8 ? 1 + next_random() % 40 : 0);
    case LAYER:
        at[0] = at[8] = 1;
        return 16 + PUT_ONE_OF(at + 16, "/usr", "/usr", "/usr/local", "/", "/opt", "usr");
    default:
        return next_random() % 16 ? 0 : 3;
    }
}

/* The channel of a frame: a new one for a command's strings and for what opens it, mostly an open one for others. */
static uint16_t channel_for(enum frame_type type)
{
    if (!in_session || type < ARG || type == COLLECT || type == PING || (type > DISCARD && type < EXEC) ||
        type > CLOSE)
        return 0;
    if (type == ARG || type == ENV)
        return opened + 1;
    if (type == EXEC || type == CONNECT)
        return ++opened;
    return (uint16_t)(next_random() % 16 ? 1 + next_random() % (opened + 1u) : next_random());
}

static size_t put_frame(uint8_t *at, enum frame_type type)
{
    size_t length = put_payload(at + HEADER_SIZE, type);
    if (type != CREDIT && type != DISCARD)
        credits = 0; /* each stream in turn */
    put_u32(at, next_random() % 200 ? (uint32_t)length : next_random());
    at[4] = (uint8_t)type;
    at[5] = (uint8_t)(next_random() % 30 ? 1 + credits++ % 3 : next_random() % 6);
    put_u16(at + 6, channel_for(type));
    if (at[6] && (type == STDIN || type == SIGNAL || type == RESIZE || type == CLOSE) && next_random() % 30)
        at[5] = 0;
    else if (at[6] && next_random() % 30)
        at[5] = (uint8_t)(1 + credits % 2);
    in_session |= type == SESSION;
    return HEADER_SIZE + length;
}

#define SCENARIO(...) {sizeof((const uint8_t[]){__VA_ARGS__}), (const uint8_t[]){__VA_ARGS__}}

/* Complete conversations: a job and its artifacts; two commands; a machine that is prepared and suspended. */
static const struct scenario {
    size_t length;
    const uint8_t *types;
} scenarios[] = {
    SCENARIO(WELCOME, IDENTITY, NETWORK, SECRET, ARG, ENV, RUN, CREDIT, CREDIT, CREDIT, STDIN, STDIN, SIGNAL, COLLECT, PING,
             COLLECT),
    SCENARIO(WELCOME, ARG, ARG, METER, RUN, CREDIT, DISCARD, METER, SIGNAL, REST, METER, ARG, RUN, CREDIT, CREDIT, SIGNAL, REST, ENV, ARG,
             RUN, CREDIT, CREDIT, SIGNAL, COLLECT, CREDIT, CREDIT, CREDIT),
    SCENARIO(WELCOME, LAYER, ARG, PREPARE, PREPARE, ARG, PREPARE, SUSPEND, IDENTITY, WELCOME, ARG, RUN, CREDIT, CREDIT,
             STDIN, SIGNAL, REST, ARG, RUN, CREDIT, CREDIT, CREDIT, SIGNAL, COLLECT),
    SCENARIO(WELCOME, SESSION, METER, ARG, ENV, EXEC, CREDIT, CREDIT, ARG, ARG, EXEC, CREDIT, CREDIT, STDIN, STDIN,
             SIGNAL, RESIZE, CONNECT, CREDIT, STDIN, CLOSE, DISCARD, CLOSE, ARG, ARG, ARG, ARG, EXEC, CREDIT, CREDIT,
             CONNECT, CLOSE, STDIN, CLOSE, SUSPEND, IDENTITY, WELCOME, CHANNELS, CREDIT, CREDIT, ARG, EXEC, CREDIT,
             CLOSE, CLOSE, PING, CLOSE),
    SCENARIO(WELCOME, ARG, PREPARE, SESSION, ARG, EXEC, ARG, EXEC, ARG, EXEC, ARG, ARG, ARG, EXEC, ARG, ARG, ARG, EXEC,
             CREDIT, CREDIT, CREDIT, CREDIT, CREDIT, CREDIT, STDIN, CLOSE, CLOSE, CLOSE, CLOSE, SIGNAL, SIGNAL, CLOSE),
};

/* Half of the inputs follow their scenario; in the others frames are dropped and inserted at random. */
static size_t make_input(uint8_t *data, size_t max_size)
{
    static const uint8_t types[] = {WELCOME, ARG, ENV, RUN, STDIN, CREDIT, SIGNAL, COLLECT, PING, DISCARD, NETWORK,
                                    IDENTITY, PREPARE, SUSPEND, REST, LAYER, SECRET, SESSION, EXEC, CONNECT, RESIZE,
                                    CLOSE, CHANNELS, METER, 0x00, 0x0A, 0xFF};
    const struct scenario *scenario = &scenarios[next_random() % (sizeof scenarios / sizeof scenarios[0])];
    bool mutated = next_random() % 2;
    size_t length = 0;
    for (size_t i = 0; i < scenario->length && length + 8192 < max_size; i++) {
        if (mutated && next_random() % 12 == 0)
            length += put_frame(data + length, types[next_random() % sizeof types]);
        if (!mutated || i == 0 || next_random() % 8) {
            /* A command before REST must leave the agent ready. */
            flags = memchr(scenario->types + i, REST, scenario->length - i) ? 2 : 0;
            length += put_frame(data + length, scenario->types[i]);
        }
    }
    inputs = opened = 0;
    in_session = false;
    return length;
}

int main(int argc, char **argv)
{
    static uint8_t data[512 * 1024];
    if (argc != 4 || chdir(argv[3]) < 0)
        return 2;
    random_state = strtoull(argv[1], NULL, 10);
    for (long rounds = atol(argv[2]); rounds > 0; rounds--)
        LLVMFuzzerTestOneInput(data, make_input(data, sizeof data));
    return 0;
}
#endif
