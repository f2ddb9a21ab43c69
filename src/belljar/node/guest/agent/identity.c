/* Everything that must differ between clones of one machine: entropy, host name, machine ID, clock.
 * A clone gets it before anything else runs in it. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *const etc_names[ETC_FILES] = {
    "hostname", "hosts", "machine-id",
};

/* Add entropy, credit it, and reseed the generator at once (random(4)): clones share all earlier state. */
static void seed_kernel(const uint8_t *seed)
{
    uint32_t pool[2 + SEED_BYTES / 4] = {SEED_BYTES * 8, SEED_BYTES}; /* struct rand_pool_info: bits, bytes, data */
    memcpy(pool + 2, seed, SEED_BYTES);
    cleanup_close int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        die("/dev/urandom");
}

void set_clock(uint64_t unix_ns)
{
    struct timespec now = {.tv_sec = (time_t)(unix_ns / 1000000000), .tv_nsec = (long)(unix_ns % 1000000000)};
    if (agent.is_init && clock_settime(CLOCK_REALTIME, &now) < 0)
        die("clock");
}

/* Open files below the image's /etc, which may be a link within its root. The files themselves may not be links. */
void open_etc(void)
{
    const int flags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    cleanup_close int etc = open_below("/newroot", "/etc", true);
    for (enum etc file = 0; file < ETC_FILES; file++)
        if (agent.etc[file] < 0)
            agent.etc[file] = openat(etc, etc_names[file], flags, 0644);
}

static void write_etc(enum etc file, const char *text)
{
    int fd = agent.etc[file];
    ssize_t length = (ssize_t)strlen(text);
    if (fd < 0 || write(fd, text, (size_t)length) != length || ftruncate(fd, length) < 0)
        log_line("/etc/%s: %s", etc_names[file], strerror(errno)); /* an image may have no writable /etc */
    close_fd(&agent.etc[file]);
}

static void set_machine_name(const char *name)
{
    char text[160], id[34] = {0};
    uint8_t random[16];
    if (sethostname(name, strlen(name)) < 0)
        die("hostname");
    open_etc();
    snprintf(text, sizeof text, "%s\n", name);
    write_etc(ETC_HOSTNAME, text);
    snprintf(text, sizeof text, "127.0.0.1 localhost %s\n::1 localhost\n", name);
    write_etc(ETC_HOSTS, text);
    if (syscall(SYS_getrandom, random, sizeof random, 0) != sizeof random)
        die("getrandom");
    for (size_t i = 0; i < sizeof random; i++) /* machine-id(5): 32 lower-case hexadecimal digits */
        snprintf(id + 2 * i, 3, "%02x", random[i]);
    id[32] = '\n';
    write_etc(ETC_MACHINE_ID, id);
}

void set_identity(const uint8_t *payload, size_t length)
{
    char name[MAX_HOSTNAME + 1] = "";
    if (length <= SEED_BYTES || length > SEED_BYTES + MAX_HOSTNAME ||
        (agent.phase != READY && agent.phase != SUSPENDED_NOW)) {
        errno = EPROTO;
        die("unexpected IDENTITY from host");
    }
    memcpy(name, payload + SEED_BYTES, length - SEED_BYTES);
    if (agent.is_init) {
        seed_kernel(payload);
        set_machine_name(name);
    }
    if (agent.phase == SUSPENDED_NOW) {
        agent.phase = WAITING_WELCOME;
        agent.last_received_ms = now_us() / 1000;
        send_hello();
    }
}
