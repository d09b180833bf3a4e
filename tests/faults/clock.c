/* Moves the wall clock by the seconds that the file says which CLOCK_OFFSET names; other clocks go on as they are. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    char text[32];
    const char *path = getenv("CLOCK_OFFSET");
    int result = syscall(SYS_clock_gettime, clock, now), file;
    ssize_t length;
    if (result != 0 || clock != CLOCK_REALTIME || !path) return result;
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return result;
    length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return result;
    text[length] = 0;
    now->tv_sec += atol(text);
    return 0;
}
