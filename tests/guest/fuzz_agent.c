/*
 * Fuzz target for the agent's parser of host frames: the agent's own source, fed with arbitrary bytes in arbitrary
 * pieces. With a libFuzzer: cc -fsanitize=fuzzer,address,undefined fuzz_agent.c. Without one, BELLJAR_FUZZ_MAIN adds a
 * main that makes its own inputs from a seed: fuzz_agent SEED ROUNDS.
 */
#include "agent.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One input is one process: dying on a bad frame is the agent's right answer. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pid_t child = fork();
    if (child == 0) {
        start_empty();
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDERR_FILENO);
        agent.port = null;
        size_t at = 0;
        while (at < size) {
            size_t piece = 1 + data[at] * 7u;
            piece = piece < size - at ? piece : size - at;
            memcpy(agent.in + agent.in_len, data + at, piece);
            agent.in_len += piece;
            at += piece;
            handle_input();
            if (agent.phase == COLLECTING)
                agent.phase = ENDED;
        }
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        abort();
    return 0;
}

#ifdef BELLJAR_FUZZ_MAIN
static uint64_t random_state;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* Mostly well-formed frames of random kinds and lengths, so that the parser is passed and not only met. */
static size_t make_input(uint8_t *data, size_t most)
{
    static const uint8_t kinds[] = {WELCOME, ARG, ENV, STDIN, CREDIT, SIGNAL, COLLECT, PING, DISCARD, NETWORK, LAYER, IDENTITY, SUSPEND, REST, 0x00, 0xFF};
    static const uint8_t welcome[HEADER_SIZE + 16] = {16, 0, 0, 0, WELCOME, 0, 0, 0, VERSION, 0, 30, 0};
    size_t length = sizeof welcome;
    memcpy(data, welcome, length);
    for (unsigned frames = next_random() % 40; frames > 0; frames--) {
        uint32_t payload = next_random() % (next_random() % 8 ? 40 : 4096);
        if (length + HEADER_SIZE + payload > most)
            break;
        put_u32(data + length, next_random() % 50 ? payload : next_random());
        data[length + 4] = kinds[next_random() % sizeof kinds];
        data[length + 5] = (uint8_t)(next_random() % 5);
        data[length + 6] = data[length + 7] = 0;
        for (uint32_t i = 0; i < payload; i++)
            data[length + HEADER_SIZE + i] = (uint8_t)next_random();
        length += HEADER_SIZE + payload;
    }
    return length;
}

int main(int argc, char **argv)
{
    static uint8_t data[64 * 1024];
    if (argc != 3)
        return 2;
    random_state = strtoull(argv[1], NULL, 10);
    for (long rounds = atol(argv[2]); rounds > 0; rounds--)
        LLVMFuzzerTestOneInput(data, make_input(data, sizeof data));
    return 0;
}
#endif
