/* Loaded before libc: steps the wall clock and lets syncs fail. See tests/it/shim.rs. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *path(char *buffer, size_t size, const char *name) {
    const char *directory = getenv("SHIM_DIRECTORY");
    snprintf(buffer, size, "%s/%s", directory ? directory : "/nonexistent", name);
    return buffer;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (result == 0 && id == CLOCK_REALTIME) {
        char buffer[4096];
        FILE *file = fopen(path(buffer, sizeof buffer, "step"), "r");
        long step = 0;
        if (file) {
            if (fscanf(file, "%ld", &step) == 1) time->tv_sec += step;
            fclose(file);
        }
    }
    return result;
}

static int fails(void) {
    char buffer[4096];
    if (access(path(buffer, sizeof buffer, "fail-sync"), F_OK) != 0) { errno = 0; return 0; }
    errno = EIO;
    return 1;
}

int fdatasync(int fd) { return fails() ? -1 : syscall(SYS_fdatasync, fd); }
int fsync(int fd) { return fails() ? -1 : syscall(SYS_fsync, fd); }
