/* Connections to ports of the machine's loopback device, for the host: bytes both ways, each end closed on its own. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int connect_loopback(int fd, bool ipv6, uint16_t port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    return ipv6 ? connect(fd, (const struct sockaddr *)&in6, sizeof in6)
                : connect(fd, (const struct sockaddr *)&in, sizeof in);
}

/* CONNECT: port u16, address family u16 (4 or 6). */
void start_connection(uint16_t id, const uint8_t *payload, size_t length)
{
    uint16_t port = length == 4 ? get_u16(payload) : 0, family = length == 4 ? get_u16(payload + 2) : 0;
    if (port == 0 || (family != 4 && family != 6)) {
        errno = EPROTO;
        die("unexpected CONNECT from host");
    }
    struct channel *channel = open_channel(id, CHANNEL_CONNECTING);
    if (!channel) {
        send_closed(id, EAGAIN);
        return;
    }
    int fd = socket(family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    channel->streams.input_fd = fd;
    channel->streams.output_fd[STDOUT] = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (channel->streams.output_fd[STDOUT] < 0 || (connect_loopback(fd, family == 6, port) < 0 && errno != EINPROGRESS))
        finish_connection(channel, errno);
    else if (errno != EINPROGRESS)
        finish_connecting(channel);
}

/* The connection is made, or refused. */
void finish_connecting(struct channel *channel)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(channel->streams.input_fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
        error = errno;
    if (error) {
        finish_connection(channel, error);
        return;
    }
    channel->state = CHANNEL_CONNECTED;
    send_on(channel->streams.channel, CONNECTED, NONE, NULL, 0);
    forward_connection_input(channel);
}

/* Write input; at its end close this direction alone. */
void forward_connection_input(struct channel *channel)
{
    struct streams *streams = &channel->streams;
    int fd = streams->input_fd;
    bool open = fd >= 0;
    forward_input(streams);
    if (open && streams->input_fd < 0 && streams->output_fd[STDOUT] >= 0)
        shutdown(streams->output_fd[STDOUT], SHUT_WR); /* the other end may have closed meanwhile */
    finish_connection(channel, 0);
}

/* After an error, or when both directions have ended, close the channel; when only the peer's has, send its END. */
void finish_connection(struct channel *channel, int error)
{
    const struct streams *streams = &channel->streams;
    uint16_t id = streams->channel;
    bool peer_ended = streams->output_fd[STDOUT] < 0, we_ended = streams->input_fd < 0;
    if (peer_ended && !channel->end_sent && !error) {
        channel->end_sent = true;
        send_on(id, END, STDOUT, NULL, 0);
    }
    if (error || (peer_ended && we_ended)) {
        free_channel(channel);
        send_closed(id, error);
    }
}
