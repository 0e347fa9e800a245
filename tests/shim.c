/* Loaded before libc: steps the wall clock, lets syncs fail and answers look-ups of names. See tests/it/shim.rs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

/* Reads the next line of the file, or the last one again. Each line has the addresses of one answer. */
static int next_answer(FILE *file, char *line, size_t size) {
    static int count = 0;
    int found = 0, wanted = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
    char read[512];
    while (found <= wanted && fgets(read, sizeof read, file)) {
        snprintf(line, size, "%s", read);
        found++;
    }
    return found > 0;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    char buffer[4096], name[512], line[512], *rest, *address;
    struct addrinfo **end = result;
    FILE *file;
    int found;
    snprintf(name, sizeof name, "addresses-of-%s", node ? node : "");
    file = fopen(path(buffer, sizeof buffer, name), "r");
    if (!file) return real(node, service, hints, result);
    found = next_answer(file, line, sizeof line);
    fclose(file);
    *result = NULL;
    if (!found) return EAI_NONAME;
    for (address = strtok_r(line, " \n", &rest); address; address = strtok_r(NULL, " \n", &rest)) {
        if (real(address, service, hints, end) != 0) return EAI_FAIL;
        while (*end) end = &(*end)->ai_next;
    }
    return *result ? 0 : EAI_NONAME;
}
