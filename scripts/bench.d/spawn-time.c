/*
 * spawn-time ROUNDS COMMAND [ARG ...] [::: COMMAND [ARG ...]] ...
 *
 * Starts each of the commands ROUNDS times and prints a line a run: the command's
 * number, nanoseconds from just before the spawn to the first byte on its
 * standard output (-1: none), to its end as seen by waitpid, and its exit code
 * (128 + n for signal n). Called by scripts/bench.
 *
 * In each round every command runs once, so that a change in the machine's load
 * meets all alike. The order in a round is drawn anew, with a pause before each
 * run: what a large program leaves for the kernel to clear away would otherwise
 * always burden the same neighbour (seen: the floor after QEMU, twice as slow).
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_COMMANDS = 16, LIMIT_MS = 60000, PAUSE_US = 30000 };

extern char **environ;

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Reads until the end of the pipe; the time of the first byte, or -1. */
static long long drain(int fd, pid_t pid)
{
	long long first = -1;
	char buf[4096];
	struct pollfd p = { .fd = fd, .events = POLLIN };

	for (;;) {
		ssize_t n;

		if (poll(&p, 1, LIMIT_MS) == 0) {
			warnx("a command was silent for %d s: ended", LIMIT_MS / 1000);
			kill(pid, SIGKILL);
			return -1;
		}
		n = read(fd, buf, sizeof buf);
		if (n <= 0)
			return first;
		if (first < 0)
			first = now();
	}
}

static void run(int index, char **argv)
{
	posix_spawn_file_actions_t actions;
	long long start, first, end;
	int out[2], status, code;
	pid_t pid;

	if (pipe2(out, O_CLOEXEC))
		err(1, "pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	start = now();
	code = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	if (code)
		errx(1, "%s: %s", argv[0], strerror(code));
	close(out[1]);
	first = drain(out[0], pid);
	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	end = now();
	close(out[0]);
	posix_spawn_file_actions_destroy(&actions);
	code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	printf("%d %lld %lld %d\n", index, first < 0 ? -1 : first - start, end - start, code);
}

/* The same orders in each run of this program. */
static void shuffle(int *order, int n)
{
	while (n > 1) {
		int i = rand() % n--, kept = order[i];

		order[i] = order[n];
		order[n] = kept;
	}
}

int main(int argc, char **argv)
{
	char **commands[MAX_COMMANDS];
	int order[MAX_COMMANDS], n = 0, rounds, i;

	if (argc < 3)
		errx(2, "usage: spawn-time ROUNDS COMMAND [ARG ...] [::: COMMAND ...]");
	rounds = atoi(argv[1]);
	commands[n++] = argv + 2;
	for (i = 2; i < argc; i++) {
		if (strcmp(argv[i], ":::"))
			continue;
		if (n == MAX_COMMANDS)
			errx(2, "more than %d commands", MAX_COMMANDS);
		argv[i] = NULL;
		commands[n++] = argv + i + 1;
	}
	for (i = 0; i < n; i++)
		order[i] = i;
	while (rounds-- > 0) {
		shuffle(order, n);
		for (i = 0; i < n; i++) {
			usleep(PAUSE_US);
			run(order[i], commands[order[i]]);
		}
	}
	return 0;
}
