/* The TCP ports that programs of the machine listen on, from /proc/net/tcp and tcp6 (proc(5)). */
#include "file_operation.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { LISTENING = 0x0A };

/* The kernel prints each 32-bit word of an address as the machine's own number. */
static int put_port(int family, const char *hex, unsigned port, unsigned uid)
{
    uint32_t words[4] = {0};
    char text[INET6_ADDRSTRLEN];
    for (int i = 0; i < (family == AF_INET6 ? 4 : 1); i++)
        if (sscanf(hex + 8 * i, "%8x", &words[i]) != 1)
            return EIO;
    if (!inet_ntop(family, words, text, sizeof text))
        return errno;
    const struct record record = {.kind = RECORD_PORT, .type = family == AF_INET6 ? 6 : 4, .uid = uid, .size = port,
                                  .path = text};
    return put_record(&record);
}

static int list_family(const char *path, int family)
{
    char line[512], hex[40];
    unsigned port, state, uid;
    FILE *file = fopen(path, "re");
    if (!file)
        return errno == ENOENT ? 0 : errno; /* a kernel without IPv6 */
    int error = 0;
    while (!error && fgets(line, sizeof line, file))
        if (sscanf(line, " %*u: %39[0-9A-F]:%x %*[0-9A-F]:%*x %x %*s %*s %*s %u", hex, &port, &state, &uid) == 4 &&
            state == LISTENING && strlen(hex) == (family == AF_INET6 ? 32 : 8))
            error = put_port(family, hex, port, uid);
    fclose(file);
    return error;
}

int list_ports(char **arguments)
{
    (void)arguments;
    int error = list_family("/proc/net/tcp", AF_INET);
    return error ? error : list_family("/proc/net/tcp6", AF_INET6);
}
