/*
 * calls.h - THE table of interposed calls: every libc symbol that libneatsock.so replaces, by room.
 * X-list: NEAT_SHIM(name). patch.c rewrites GOT entries by it, libneatsock.map is checked against it
 * (tests/unit/test_layering.py), docs/differences.md speaks about the rest of libc.
 */

/* shim_socket.c */
NEAT_SHIM(socket)
NEAT_SHIM(bind)
NEAT_SHIM(listen)
NEAT_SHIM(accept)
NEAT_SHIM(accept4)
NEAT_SHIM(connect)
NEAT_SHIM(shutdown)
NEAT_SHIM(getsockname)
NEAT_SHIM(getpeername)
NEAT_SHIM(getsockopt)
NEAT_SHIM(setsockopt)

/* shim_io.c */
NEAT_SHIM(read)
NEAT_SHIM(write)
NEAT_SHIM(readv)
NEAT_SHIM(writev)
NEAT_SHIM(recv)
NEAT_SHIM(recvfrom)
NEAT_SHIM(recvmsg)
NEAT_SHIM(recvmmsg)
NEAT_SHIM(send)
NEAT_SHIM(sendto)
NEAT_SHIM(sendmsg)
NEAT_SHIM(sendmmsg)
NEAT_SHIM(sendfile)
NEAT_SHIM(sendfile64)
NEAT_SHIM(splice)
NEAT_SHIM(__read_chk)
NEAT_SHIM(__recv_chk)
NEAT_SHIM(__recvfrom_chk)

/* shim_stdio.c */
NEAT_SHIM(fdopen)
NEAT_SHIM(perror)
NEAT_SHIM(dprintf)
NEAT_SHIM(vdprintf)
NEAT_SHIM(__dprintf_chk)
NEAT_SHIM(__vdprintf_chk)

/* shim_fd.c */
NEAT_SHIM(close)
NEAT_SHIM(close_range)
NEAT_SHIM(closefrom)
NEAT_SHIM(dup)
NEAT_SHIM(dup2)
NEAT_SHIM(dup3)
NEAT_SHIM(fcntl)
NEAT_SHIM(fcntl64)
NEAT_SHIM(ioctl)

/* shim_poll.c */
NEAT_SHIM(poll)
NEAT_SHIM(ppoll)
NEAT_SHIM(__poll_chk)
NEAT_SHIM(__ppoll_chk)
NEAT_SHIM(select)
NEAT_SHIM(pselect)
NEAT_SHIM(epoll_create)
NEAT_SHIM(epoll_create1)
NEAT_SHIM(epoll_ctl)
NEAT_SHIM(epoll_wait)
NEAT_SHIM(epoll_pwait)
NEAT_SHIM(epoll_pwait2)

/* shim_spawn.c */
NEAT_SHIM(posix_spawn)
NEAT_SHIM(posix_spawnp)
NEAT_SHIM(posix_spawn_file_actions_destroy)
NEAT_SHIM(posix_spawn_file_actions_addopen)
NEAT_SHIM(posix_spawn_file_actions_addclose)
NEAT_SHIM(posix_spawn_file_actions_adddup2)
NEAT_SHIM(posix_spawn_file_actions_addchdir_np)
NEAT_SHIM(posix_spawn_file_actions_addfchdir_np)
NEAT_SHIM(posix_spawn_file_actions_addclosefrom_np)
NEAT_SHIM(system)
NEAT_SHIM(popen)
NEAT_SHIM(pclose)

/* shim_process.c */
NEAT_SHIM(fork)
NEAT_SHIM(vfork)
NEAT_SHIM(execve)
NEAT_SHIM(execv)
NEAT_SHIM(execvp)
NEAT_SHIM(execvpe)
NEAT_SHIM(execl)
NEAT_SHIM(execlp)
NEAT_SHIM(execle)

/* shim_signal.c */
NEAT_SHIM(sigaction)
NEAT_SHIM(__sigaction)
NEAT_SHIM(signal)
NEAT_SHIM(bsd_signal)
NEAT_SHIM(ssignal)
NEAT_SHIM(sysv_signal)
NEAT_SHIM(__sysv_signal)
NEAT_SHIM(sigset)
NEAT_SHIM(siginterrupt)

/* syscall.c */
NEAT_SHIM(syscall)
NEAT_SHIM(prctl)
