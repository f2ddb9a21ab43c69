/* Stands for a QEMU that its guest has taken over: tries to change every file that it was handed. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int
overwrite(int fd)
{
	return fd >= 0 && pwrite(fd, "EVIL", 4, 0) == 4;
}

static int
change(int fd, mode_t mode)
{
	char path[64];
	struct timespec old[2] = {{1, 0}, {1, 0}};
	int changed = 0, again;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	changed |= overwrite(fd);
	changed |= fchmod(fd, 0666) == 0;
	changed |= chmod(path, 0666) == 0;
	again = open(path, O_RDWR);
	changed |= overwrite(again);
	changed |= overwrite(open(path, O_WRONLY | O_TRUNC));
	changed |= ftruncate(fd, 1) == 0 || truncate(path, 1) == 0;
	changed |= futimens(fd, old) == 0;
	changed |= linkat(AT_FDCWD, path, AT_FDCWD, "/tmp/mine", AT_SYMLINK_FOLLOW) == 0;
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED) {
		memcpy(page, "EVIL", 4);
		changed = 1;
	}
	if (changed)
		fchmod(fd, mode);
	return changed;
}

int
main(void)
{
	int files = 0, changed = 0;

	for (int fd = 3; fd < 256; fd++) {
		struct stat about;

		if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode))
			continue;
		files++;
		changed += change(fd, about.st_mode & 07777);
	}
	fprintf(stderr, "tried %d files, changed %d\n", files, changed);
	return 3;
}
