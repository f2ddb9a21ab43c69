/* Free memory of a machine that will be frozen.
 * Pages that were used and freed hold old bytes, which a snapshot would keep; pages of zeros cost it nothing. */
#include "agent.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>

/* Fill free memory with zeros, by taking it and giving it back. The kernel needs some free memory for itself, and takes
 * pages of files when it has less: they must stay. Most of a large machine's free memory was never used, and would be
 * used by this, so there is a limit. Failing is harmless: the snapshot is larger. */
void clear_free_memory(void)
{
    enum { KEPT_BYTES = 6 << 20, MAX_BYTES = 192 << 20 };
    struct sysinfo info;
    if (!agent.is_init || sysinfo(&info) < 0)
        return;
    uint64_t bytes = (uint64_t)info.freeram * info.mem_unit;
    if (bytes <= KEPT_BYTES)
        return;
    bytes = bytes - KEPT_BYTES < MAX_BYTES ? bytes - KEPT_BYTES : MAX_BYTES;
    void *taken = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (taken != MAP_FAILED)
        munmap(taken, bytes);
}
