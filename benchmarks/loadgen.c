/* loadgen: a fleet of clients for real-time collaboration servers, in one thread over epoll.
 *
 * It opens rooms x members connections, lets the writers among them send pre-made Yjs updates at a
 * fixed rate, and counts what the others get. It prints one line of JSON.
 *
 * Dialects: sio (Socket.IO v4 on a websocket from the start), sio-msgpack (the same with the
 * msgpack parser), yws (y-websocket), hocuspocus. Names of events and shapes of arguments are
 * options; templates are JSON text in which {room} {user} {member} {seq} are replaced and {bin} is
 * the binary update.
 *
 * Every update carries a tag "c0ffee5e-WWWW-....-....-SSSSSSSSSSSS" (writer, sequence number; see
 * updates.py). An update counts as delivered when its tag is seen on a member other than its
 * writer, wherever it lies in the bytes: a server that merges updates is counted correctly.
 * Gaps and duplicates are breaks of the sequence of one writer at one receiver.
 *
 * With more than one port the members of each room are spread over them, in turn: those are
 * instances of one service. What came from a writer at one port to a member at another is counted
 * once more by itself (`cross`).
 *
 * Latency runs from the moment at which the update was due to be sent, not from when it was sent
 * (open loop): a server that makes the generator wait is not let off.
 *
 * Limits: no fragmented frames, no permessage-deflate, no long-polling. Linux, glibc 2.35+. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

enum { SIO, MSGPACK, YWS, HOCUS };

/* How far a connection has come. READY: it has joined its room and holds its state. */
enum { CONNECTING, HTTP, OPENING, JOINING, READY, DEAD };

/* What a binary attachment belongs to. */
enum { K_OTHER, K_DELIVER, K_JOIN };

/* One client. `last` holds the sequence number that comes next from each writer; `binleft` and
 * `kind` say how many attachments the last Socket.IO header announced, and what they are. */
typedef struct {
  int fd, state, room, member, writer, seeder, stalled, kind, binleft;
  u8 *rx;
  u32 rxlen, rxcap;
  u8 *tx;
  u32 txlen, txcap;
  u32 *last;
  u32 statetags;
  int joined;
  u64 t_open;
} conn;

/* ---- options, see main() ---- */
static int dialect = SIO, rooms = 40, members = 25, writers = 0, inflight = 100,
           stall = 0, lead = 0, join_wait_ack = 1, update_ack = 0, need_state = 0, verbose = 0;
static double rate = 0, duration = 10, drain = 5, seed_wait = 3, settle = 1;
static const char *host = "127.0.0.1", *path = NULL, *auth_t = "", *join_ev = "join",
                  *join_args = "\"{room}\"", *join_wait_ev = NULL, *update_ev = "update",
                  *update_args = "\"{room}\",{bin}", *deliver_ev = NULL, *ns_t = "",
                  *room_t = "room-%d", *token = "token", *updates_f = NULL, *seed_f = NULL,
                  *label = "", *header = "";
static int ports[16] = {5000}, nports = 1, pids[16], npids, told[16], ntold;

/* ---- payload: the updates of every writer, by writer and sequence number ---- */
typedef struct {
  u32 nw, per;
  u8 **p;
  u32 *len;
} upd;

static upd U, S;

/* ---- the fleet and its counters; times in ns ---- */
static conn *C;
static int NC, NT;
static int ep;
static u64 t0, interval_ns;
static int running;
static u64 n_sent, n_expect, n_deliv, n_echo, n_frames, n_bytes, n_gap, n_dup, n_unknown, n_proto,
    n_ack, n_closed, n_inwin, n_err, n_statebytes;
static u64 t_last, n_port_deliv[16], n_cross;
static double lag_max_us;
static u64 t_end;
static int n_ready, n_inflight;
/* Histograms with a bucket for each microsecond: delivery, ack, delivery across
 * ports and connect times. */
#define HB 20000000u
static u32 *hist, *ahist, *xhist;
static u64 hmax, amax, xmax;
static u32 *chist;
static u64 cmax;

static u64 now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *f, ...) {
  va_list a;
  va_start(a, f);
  vfprintf(stderr, f, a);
  va_end(a);
  fputc('\n', stderr);
  exit(2);
}

/* Numbers with commas between them. Returns: how many. */
static int numbers(char *text, int *o) {
  int n = 0;
  for (char *t = strtok(text, ","); t && n < 16; t = strtok(NULL, ",")) o[n++] = atoi(t);
  return n;
}

/* Add one time to a histogram. */
static void rec(u32 *h, u64 *mx, u64 ns) {
  u64 us = ns / 1000;
  if (us > *mx) *mx = us;
  h[us < HB ? us : HB - 1]++;
}

/* A quantile of a histogram in ms, -1 when it is empty. */
static double pct(u32 *h, double q) {
  u64 n = 0, c = 0;
  for (u32 i = 0; i < HB; i++) n += h[i];
  if (!n) return -1;
  u64 want = (u64)(q * n);
  if (want >= n) want = n - 1;
  for (u32 i = 0; i < HB; i++) {
    c += h[i];
    if (c > want) return i / 1000.0;
  }
  return -1;
}

/* Read a payload file. */
static void load(const char *f, upd *o) {
  FILE *h = fopen(f, "rb");
  char m[4];
  if (!h || fread(m, 1, 4, h) != 4 || memcmp(m, "YUPD", 4)) die("bad updates file %s", f);
  if (fread(&o->nw, 4, 1, h) != 1 || fread(&o->per, 4, 1, h) != 1) die("short %s", f);
  size_t n = (size_t)o->nw * o->per;
  o->p = malloc(n * sizeof *o->p);
  o->len = malloc(n * 4);
  for (size_t i = 0; i < n; i++) {
    if (fread(&o->len[i], 4, 1, h) != 1) die("short %s", f);
    o->p[i] = malloc(o->len[i]);
    if (fread(o->p[i], 1, o->len[i], h) != o->len[i]) die("short %s", f);
  }
  fclose(h);
}

/* CPU seconds (user, system), resident and peak memory (MB) of the measured processes together. */
static void cpu_rss(double *ut, double *st, double *rss, double *hwm) {
  *ut = *st = *rss = *hwm = 0;
  long hz = sysconf(_SC_CLK_TCK);
  for (int i = 0; i < npids; i++) {
    char b[4096];
    snprintf(b, sizeof b, "/proc/%d/stat", pids[i]);
    FILE *f = fopen(b, "r");
    if (!f) continue;
    size_t n = fread(b, 1, sizeof b - 1, f);
    fclose(f);
    b[n] = 0;
    char *p = strrchr(b, ')');
    unsigned long u, s;
    if (p && sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s) == 2) {
      *ut += (double)u / hz;
      *st += (double)s / hz;
    }
    snprintf(b, sizeof b, "/proc/%d/status", pids[i]);
    f = fopen(b, "r");
    if (!f) continue;
    char l[256];
    double v;
    while (fgets(l, sizeof l, f)) {
      if (sscanf(l, "VmRSS: %lf", &v) == 1) *rss += v / 1024;
      if (sscanf(l, "VmHWM: %lf", &v) == 1) *hwm += v / 1024;
    }
    fclose(f);
  }
}

/* ---- small output buffer ---- */
typedef struct {
  u8 b[1 << 17];
  u32 n;
} buf;

static void put(buf *o, const void *p, u32 n) {
  if (o->n + n > sizeof o->b) die("message too large");
  memcpy(o->b + o->n, p, n);
  o->n += n;
}

static void put1(buf *o, u8 c) {
  put(o, &c, 1);
}

static void puts_(buf *o, const char *s) {
  put(o, s, strlen(s));
}

/* An unsigned integer as lib0, the encoding under y-protocols, writes it. */
static void varuint(buf *o, u32 v) {
  while (v > 127) {
    put1(o, 0x80 | (v & 127));
    v >>= 7;
  }
  put1(o, v);
}

static void roomname(conn *c, char *o, size_t n) {
  snprintf(o, n, room_t, c->room);
}

/* Which of the ports a member is at. */
static int port_of(int member) {
  return member % nports;
}

/* Write a template with its places filled in; keepbin leaves {bin} to the caller. */
static void expand(buf *o, const char *t, conn *c, u32 seq, int keepbin) {
  char r[128], v[32];
  while (*t) {
    if (!strncmp(t, "{room}", 6)) {
      roomname(c, r, sizeof r);
      puts_(o, r);
      t += 6;
    } else if (!strncmp(t, "{user}", 6)) {
      snprintf(v, sizeof v, "u%d", c->room * members + c->member);
      puts_(o, v);
      t += 6;
    } else if (!strncmp(t, "{member}", 8)) {
      snprintf(v, sizeof v, "%d", c->member);
      puts_(o, v);
      t += 8;
    } else if (!strncmp(t, "{seq}", 5)) {
      snprintf(v, sizeof v, "%u", seq);
      puts_(o, v);
      t += 5;
    } else if (!strncmp(t, "{bin}", 5)) {
      puts_(o, keepbin ? "{bin}" : "{\"_placeholder\":true,\"num\":0}");
      t += 5;
    } else
      put1(o, *t++);
  }
}

/* ---- JSON -> msgpack (enough for templates) ---- */
static const char *j2m(buf *o, const char *s, const u8 *bin, u32 bl);

static const char *sk(const char *s) {
  while (*s == ' ') s++;
  return s;
}

/* The rest of an array or object up to `end`. */
static const char *jseq(buf *o, const char *s, char end, int map, const u8 *bin, u32 bl) {
  u32 at = o->n, n = 0;
  put1(o, 0);
  s = sk(s);
  while (*s && *s != end) {
    s = sk(j2m(o, s, bin, bl));
    if (map) {
      if (*s == ':') s++;
      s = sk(j2m(o, sk(s), bin, bl));
    }
    n++;
    if (*s == ',') s = sk(s + 1);
  }
  if (n > 15) die("template too large");
  o->b[at] = (map ? 0x80 : 0x90) | n;
  return *s ? s + 1 : s;
}

static void mstr(buf *o, const char *s, u32 n) {
  if (n < 32)
    put1(o, 0xa0 | n);
  else {
    put1(o, 0xd9);
    put1(o, n);
  }
  put(o, s, n);
}

static void mint(buf *o, u32 v) {
  if (v < 128)
    put1(o, v);
  else {
    put1(o, 0xce);
    u32 b = htonl(v);
    put(o, &b, 4);
  }
}

/* One JSON value; {bin} becomes the binary. Returns: where it ended. */
static const char *j2m(buf *o, const char *s, const u8 *bin, u32 bl) {
  s = sk(s);
  if (!strncmp(s, "{bin}", 5)) {
    put1(o, 0xc5);
    put1(o, bl >> 8);
    put1(o, bl);
    put(o, bin, bl);
    return s + 5;
  }
  if (*s == '{') return jseq(o, s + 1, '}', 1, bin, bl);
  if (*s == '[') return jseq(o, s + 1, ']', 0, bin, bl);
  if (*s == '"') {
    const char *e = strchr(s + 1, '"');
    if (!e) die("bad json");
    mstr(o, s + 1, e - s - 1);
    return e + 1;
  }
  if (!strncmp(s, "true", 4)) {
    put1(o, 0xc3);
    return s + 4;
  }
  if (!strncmp(s, "false", 5)) {
    put1(o, 0xc2);
    return s + 5;
  }
  if (!strncmp(s, "null", 4)) {
    put1(o, 0xc0);
    return s + 4;
  }
  char *e;
  double d = strtod(s, &e);
  if (e == s) die("bad json at %s", s);
  if (d == (u32)d)
    mint(o, (u32)d);
  else {
    put1(o, 0xcb);
    u64 x;
    memcpy(&x, &d, 8);
    x = __builtin_bswap64(x);
    put(o, &x, 8);
  }
  return e;
}

/* ---- websocket tx ---- */
static const u8 MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

/* One masked websocket frame. */
static void frame(buf *o, int op, const u8 *p, u32 n) {
  put1(o, 0x80 | op);
  if (n < 126)
    put1(o, 0x80 | n);
  else if (n < 65536) {
    put1(o, 0x80 | 126);
    put1(o, n >> 8);
    put1(o, n);
  } else {
    put1(o, 0x80 | 127);
    for (int i = 7; i >= 0; i--) put1(o, i > 3 ? 0 : n >> (8 * i));
  }
  put(o, MASK, 4);
  u32 at = o->n;
  put(o, p, n);
  for (u32 i = 0; i < n; i++) o->b[at + i] ^= MASK[i & 3];
}

static void ev_mod(conn *c, u32 ev) {
  struct epoll_event e = {.events = ev, .data.ptr = c};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

/* Count a connection as lost, and close it. */
static void kill_conn(conn *c, const char *why) {
  if (c->state == DEAD) return;
  if (n_closed++ < 3 || verbose)
    fprintf(stderr, "conn room %d member %d closed in state %d: %s\n", c->room, c->member, c->state,
            why);
  if (c->state < READY && !c->seeder) n_inflight--;
  if (c->state < READY) n_err++;
  close(c->fd);
  c->state = DEAD;
}

/* Send, and keep what the socket does not take now. */
static void raw(conn *c, const u8 *p, u32 n) {
  if (c->state == DEAD) return;
  if (!c->txlen) {
    ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (w < 0) {
      if (errno != EAGAIN) {
        kill_conn(c, strerror(errno));
        return;
      }
      w = 0;
    }
    p += w;
    n -= w;
  }
  if (!n) return;
  if (c->txlen + n > c->txcap) {
    c->txcap = (c->txlen + n) * 2;
    c->tx = realloc(c->tx, c->txcap);
  }
  memcpy(c->tx + c->txlen, p, n);
  c->txlen += n;
  ev_mod(c, EPOLLIN | EPOLLOUT);
}

static void text(conn *c, const char *s) {
  static buf o;
  o.n = 0;
  frame(&o, 1, (u8 *)s, strlen(s));
  raw(c, o.b, o.n);
}

static void binf(conn *c, buf *b) {
  static buf o;
  o.n = 0;
  frame(&o, 2, b->b, b->n);
  raw(c, o.b, o.n);
}

/* the Socket.IO namespace of a connection, with its comma; nothing for "/" */
static void nsname(buf *b, conn *c) {
  if (*ns_t) {
    expand(b, ns_t, c, 0, 0);
    put1(b, ',');
  }
}

/* one Socket.IO event; id < 0: no ack wanted */
static void emit(conn *c, const char *ev, const char *args, u32 seq, const u8 *bin, u32 bl,
                 long id) {
  static buf a, m, o;
  a.n = m.n = o.n = 0;
  char h[64];
  int hasbin = bin && strstr(args, "{bin}");
  if (dialect == MSGPACK) {
    puts_(&a, "[\"");
    puts_(&a, ev);
    puts_(&a, "\"");
    if (*args) puts_(&a, ",");
    expand(&a, args, c, seq, 1);
    put(&a, "]", 2);
    put1(&m, id >= 0 ? 0x84 : 0x83);
    mstr(&m, "type", 4);
    mint(&m, 2);
    mstr(&m, "data", 4);
    j2m(&m, (char *)a.b, bin, bl);
    mstr(&m, "nsp", 3);
    mstr(&m, "/", 1);
    if (id >= 0) {
      mstr(&m, "id", 2);
      mint(&m, id);
    }
    binf(c, &m);
    return;
  }
  puts_(&a, hasbin ? "451-" : "42");
  nsname(&a, c);
  if (id >= 0) {
    snprintf(h, sizeof h, "%ld", id);
    puts_(&a, h);
  }
  puts_(&a, "[\"");
  puts_(&a, ev);
  puts_(&a, "\"");
  if (*args) puts_(&a, ",");
  expand(&a, args, c, seq, 0);
  puts_(&a, "]");
  frame(&o, 1, a.b, a.n);
  if (hasbin) frame(&o, 2, bin, bl);
  raw(c, o.b, o.n);
}

/* hocuspocus puts the document's name before each message. */
static void hname(buf *b, conn *c) {
  char r[128];
  roomname(c, r, sizeof r);
  varuint(b, strlen(r));
  puts_(b, r);
}

/* A y-protocols sync message: 0 asks with a state vector, 1 answers, 2 is an update. */
static void ysync(conn *c, int sub, const u8 *p, u32 n) {
  static buf b;
  b.n = 0;
  if (dialect == HOCUS) hname(&b, c);
  put1(&b, 0);
  put1(&b, sub);
  varuint(&b, n);
  put(&b, p, n);
  binf(c, &b);
}

static void send_update(conn *c, u32 seq, const u8 *p, u32 n, long id) {
  if (dialect == SIO || dialect == MSGPACK)
    emit(c, update_ev, update_args, seq, p, n, id);
  else
    ysync(c, 2, p, n);
}

/* ---- delivery accounting ---- */
/* n hex digits. */
static u32 hx(const u8 *p, int n) {
  u32 v = 0;
  while (n--) {
    u8 ch = *p++;
    v = v << 4 | (ch <= '9' ? ch - '0' : (ch | 32) - 'a' + 10);
  }
  return v;
}

/* Count a client as ready once it has joined and has seen all of the seed document. */
static void set_ready(conn *c, u64 now) {
  if (c->state == READY || c->state == DEAD || !c->joined ||
      (!c->seeder && (int)c->statetags < need_state))
    return;
  c->state = READY;
  if (!c->seeder) {
    n_ready++;
    n_inflight--;
    rec(chist, &cmax, now - c->t_open);
  }
}

/* Find the tags in what a client got, and account for each. */
static void scan(conn *c, const u8 *p, u32 n, u64 now, int kind) {
  const u8 *e = p + n, *q;
  int any = 0;
  while ((q = memmem(p, e - p, "c0ffee5e-", 9)) && e - q >= 36) {
    u32 w = hx(q + 9, 4), s = hx(q + 24, 12);
    p = q + 36;
    if (w == 0xffff) {
      c->statetags++;
      continue;
    }
    if (!running || kind == K_JOIN || c->seeder) continue;
    u64 k = (u64)s * rooms * writers + (u64)w * rooms + c->room;
    if ((int)w >= writers || k >= n_sent) {
      n_unknown++;
      continue;
    }
    any = 1;
    if ((int)w == c->writer) {
      n_echo++;
      continue;
    }
    u32 *l = &c->last[w];
    if (s == *l)
      ++*l;
    else if (s > *l) {
      n_gap += s - *l;
      *l = s + 1;
    } else {
      n_dup++;
      continue;
    }
    n_deliv++;
    t_last = now;
    if (now <= t_end) n_inwin++;
    rec(hist, &hmax, now - (t0 + k * interval_ns));
    n_port_deliv[port_of(c->member)]++;
    if (port_of(w) != port_of(c->member)) {
      n_cross++;
      rec(xhist, &xmax, now - (t0 + k * interval_ns));
    }
  }
  if (any) {
    n_frames++;
    n_bytes += n;
  }
  if (c->state < READY) {
    n_statebytes += n;
    set_ready(c, now);
  }
}

/* Ack 0 is that of the join; ack k + 1 is that of update k. */
static void ack(conn *c, long id, u64 now) {
  if (id == 0) {
    c->joined = 1;
    set_ready(c, now);
    return;
  }
  n_ack++;
  if (running && update_ack) rec(ahist, &amax, now - (t0 + (u64)(id - 1) * interval_ns));
}

/* Whether an event's JSON array starts with this name. */
static int evis(const u8 *p, u32 n, const char *name) {
  u32 l = strlen(name);
  return n >= l + 3 && p[0] == '[' && p[1] == '"' && !memcmp(p + 2, name, l) && p[2 + l] == '"';
}

/* The namespace is open: ask for the document. */
static void do_join(conn *c, u64 now) {
  c->state = JOINING;
  if (!*join_ev) {
    c->joined = 1;
    set_ready(c, now);
    return;
  }
  static const u8 empty_vector = 0; /* a {bin} in the join arguments is an empty Yjs state vector */
  emit(c, join_ev, join_args, 0, &empty_vector, 1, join_wait_ack && !join_wait_ev ? 0 : -1);
  if (!join_wait_ack && !join_wait_ev) {
    c->joined = 1;
    set_ready(c, now);
  }
}

/* The Engine.IO session is open: connect to the namespace. */
static void eio_open(conn *c) {
  static buf b;
  b.n = 0;
  if (dialect == MSGPACK) {
    static buf a;
    a.n = 0;
    expand(&a, auth_t, c, 0, 1);
    put1(&a, 0);
    put1(&b, *auth_t ? 0x83 : 0x82);
    mstr(&b, "type", 4);
    mint(&b, 0);
    mstr(&b, "nsp", 3);
    mstr(&b, "/", 1);
    if (*auth_t) {
      mstr(&b, "data", 4);
      j2m(&b, (char *)a.b, NULL, 0);
    }
    binf(c, &b);
    return;
  }
  puts_(&b, "40");
  nsname(&b, c);
  expand(&b, auth_t, c, 0, 0);
  put1(&b, 0);
  text(c, (char *)b.b);
}

/* An Engine.IO packet: ping, or a Socket.IO packet of the default parser. */
static void on_text(conn *c, u8 *p, u32 n, u64 now) {
  if (dialect == YWS || dialect == HOCUS || n == 0) return;
  switch (p[0]) {
  case '0': eio_open(c); return;
  case '2': text(c, "3"); return;
  case '1': kill_conn(c, "eio close"); return;
  case '4': break;
  default: return;
  }
  if (n < 2) return;
  u8 t = p[1], *q = p + 2, *e = p + n;
  long id = -1;
  int na = 0;
  if (t == '0') {
    do_join(c, now);
    return;
  }
  if (t == '4' || t == '1') {
    kill_conn(c, "sio connect error/disconnect");
    return;
  }
  if (c->binleft) {
    n_proto++;
    c->binleft = 0;
  }
  if (t == '5' || t == '6') {
    while (q < e && *q != '-') na = na * 10 + *q++ - '0';
    q++;
  }
  if (q < e && *q == '/') {
    while (q < e && *q != ',') q++;
    q++;
  }
  if (q < e && *q >= '0' && *q <= '9') {
    id = 0;
    while (q < e && *q >= '0' && *q <= '9') id = id * 10 + *q++ - '0';
  }
  if ((t == '2' || t == '5') && id >= 0) { /* the server asks for an ack (y-socket.io's
                                              sync-step-1): answer with an empty update */
    static buf a, o;
    a.n = o.n = 0;
    char h[32];
    puts_(&a, "461-");
    nsname(&a, c);
    snprintf(h, sizeof h, "%ld", id);
    puts_(&a, h);
    puts_(&a, "[{\"_placeholder\":true,\"num\":0}]");
    frame(&o, 1, a.b, a.n);
    frame(&o, 2, (const u8 *)"\0\0", 2);
    raw(c, o.b, o.n);
  }
  if (t == '3') {
    if (id == 0) scan(c, q, e - q, now, K_JOIN);
    ack(c, id, now);
    return;
  }
  if (t == '6') {
    c->binleft = na;
    c->kind = id == 0 ? K_JOIN : K_OTHER;
    if (id > 0) ack(c, id, now);
    return;
  }
  int kind = evis(q, e - q, deliver_ev)                     ? K_DELIVER
             : join_wait_ev && evis(q, e - q, join_wait_ev) ? K_JOIN
                                                            : K_OTHER;
  if (t == '5') {
    c->binleft = na;
    c->kind = kind;
    return;
  }
  if (kind == K_JOIN) c->joined = 1;
  if (kind != K_OTHER) scan(c, q, e - q, now, kind);
}

/* Read what varuint wrote. */
static u32 rdvar(u8 **p, u8 *e) {
  u32 v = 0;
  int s = 0;
  while (*p < e) {
    u8 b = *(*p)++;
    v |= (u32)(b & 127) << s;
    s += 7;
    if (!(b & 128)) break;
  }
  return v;
}

/* A binary frame: an attachment, or a whole message of the other dialects. */
static void on_bin(conn *c, u8 *p, u32 n, u64 now) {
  u8 *e = p + n;
  if (dialect == SIO) {
    if (!c->binleft) {
      n_proto++;
      return;
    }
    c->binleft--;
    if (c->kind == K_JOIN && !c->binleft) c->joined = 1;
    if (c->kind != K_OTHER || c->state < READY) scan(c, p, n, now, c->kind);
    if (c->state < READY) set_ready(c, now);
    return;
  }
  if (dialect == MSGPACK) {
    u8 *t = memmem(p, n, "\xa4type", 5);
    if (!t) {
      n_proto++;
      return;
    }
    switch (t[5]) {
    case 0: do_join(c, now); return;
    case 3: {
      u8 *i = NULL, *q = p;
      while ((q = memmem(q, e - q, "\xa2id", 3))) {
        i = q;
        q += 3;
      }
      long id = -1;
      if (i) {
        i += 3;
        id = *i < 128     ? *i
             : *i == 0xcc ? i[1]
             : *i == 0xcd ? i[1] << 8 | i[2]
             : *i == 0xce ? (long)i[1] << 24 | i[2] << 16 | i[3] << 8 | i[4]
                          : -1;
      }
      if (id == 0) {
        c->joined = 1;
        scan(c, p, n, now, K_JOIN);
      }
      ack(c, id, now);
      return;
    }
    case 2:
    case 5: {
      u8 *d = memmem(p, n > 64 ? 64 : n, deliver_ev, strlen(deliver_ev));
      int k = d ? K_DELIVER : K_OTHER;
      if (join_wait_ev && memmem(p, n > 64 ? 64 : n, join_wait_ev, strlen(join_wait_ev))) {
        k = K_JOIN;
        c->joined = 1;
      }
      if (k != K_OTHER) scan(c, p, n, now, k);
      return;
    }
    case 4:
    case 1: kill_conn(c, "sio connect error/disconnect"); return;
    }
    return;
  }
  if (dialect == HOCUS) {
    u32 l = rdvar(&p, e);
    p += l;
  }
  if (p >= e) {
    n_proto++;
    return;
  }
  u32 t = rdvar(&p, e);
  if (dialect == HOCUS && t == 2) {
    u32 s = rdvar(&p, e);
    if (s == 2) {
      c->state = JOINING;
      u8 z = 0;
      ysync(c, 0, &z, 1);
    } else if (s == 1)
      kill_conn(c, "permission denied");
    return;
  }
  if (dialect == HOCUS && t == 8) {
    n_ack++;
    return;
  }
  if (dialect == HOCUS && t == 7) {
    kill_conn(c, "hocuspocus close message");
    return;
  }
  if (t == 0 || (dialect == HOCUS && t == 4)) {
    u32 s = rdvar(&p, e);
    u8 z[2] = {0, 0};
    if (s == 0)
      ysync(c, 1, z, 2);
    else if (s == 1) {
      c->joined = 1;
      scan(c, p, e - p, now, K_JOIN);
      if (c->state < READY) set_ready(c, now);
    } else
      scan(c, p, e - p, now, K_DELIVER);
  }
}

/* ---- io ---- */
/* Where every read goes first; what is left of a frame is kept with its connection. */
static u8 *RB;
static u32 RBN = 8 << 20;

/* The websocket is open: begin the dialect. */
static void ws_open(conn *c) {
  c->state = OPENING;
  if (dialect == YWS) {
    c->state = JOINING;
    u8 z = 0;
    ysync(c, 0, &z, 1);
  }
  if (dialect == HOCUS) {
    static buf b;
    b.n = 0;
    hname(&b, c);
    put1(&b, 2);
    put1(&b, 0);
    varuint(&b, strlen(token));
    puts_(&b, token);
    varuint(&b, 5);
    puts_(&b, "4.7.0");
    binf(c, &b);
  }
}

/* The TCP connection is open: ask for the websocket. */
static void start_http(conn *c) {
  static buf b;
  b.n = 0;
  c->state = HTTP;
  puts_(&b, "GET ");
  expand(&b, path, c, 0, 0);
  char h[1024];
  snprintf(
      h, sizeof h,
      " HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
      "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
      host, ports[port_of(c->member)]);
  puts_(&b, h);
  if (*header) {
    expand(&b, header, c, 0, 0);
    puts_(&b, "\r\n");
  }
  puts_(&b, "\r\n");
  raw(c, b.b, b.n);
}

/* Read once, and handle every whole frame. */
static void on_read(conn *c) {
  u32 have = c->rxlen;
  if (have) memcpy(RB, c->rx, have);
  if (RBN - have < 65536) die("frame too large");
  ssize_t r = recv(c->fd, RB + have, RBN - have > 262144 ? 262144 : RBN - have, MSG_DONTWAIT);
  if (r <= 0) {
    if (r < 0 && errno == EAGAIN) return;
    kill_conn(c, r ? strerror(errno) : "eof");
    return;
  }
  u64 now = now_ns();
  u8 *p = RB, *e = RB + have + r;
  c->rxlen = 0;
  if (c->state == HTTP) {
    u8 *h = memmem(p, e - p, "\r\n\r\n", 4);
    if (h) {
      if (memcmp(p, "HTTP/1.1 101", 12)) {
        *h = 0;
        kill_conn(c, (char *)p);
        return;
      }
      p = h + 4;
      ws_open(c);
    } else
      goto keep;
  }
  while (e - p >= 2 && c->state != DEAD) {
    u64 l = p[1] & 127;
    u8 *d = p + 2;
    int op = p[0] & 15;
    if (l == 126) {
      if (e - p < 4) break;
      l = p[2] << 8 | p[3];
      d = p + 4;
    } else if (l == 127) {
      if (e - p < 10) break;
      l = 0;
      for (int i = 2; i < 10; i++) l = l << 8 | p[i];
      d = p + 10;
    }
    if ((u64)(e - d) < l) break;
    if (!(p[0] & 0x80) || op == 0) die("fragmented frames are not supported");
    if (op == 1)
      on_text(c, d, l, now);
    else if (op == 2)
      on_bin(c, d, l, now);
    else if (op == 9) {
      static buf o;
      o.n = 0;
      frame(&o, 10, d, l);
      raw(c, o.b, o.n);
    } else if (op == 8) {
      char w[64];
      snprintf(w, sizeof w, "ws close %d", l >= 2 ? d[0] << 8 | d[1] : 0);
      kill_conn(c, w);
      return;
    }
    p = d + l;
  }
keep:
  if (c->state != DEAD && p < e) {
    u32 n = e - p;
    if (n > c->rxcap) {
      c->rxcap = n * 2;
      c->rx = realloc(c->rx, c->rxcap);
    }
    memcpy(c->rx, p, n);
    c->rxlen = n;
  }
}

static void open_conn(conn *c) {
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) die("socket: %s (raise ulimit -n)", strerror(errno));
  int one = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(ports[port_of(c->member)])};
  inet_pton(AF_INET, host, &a.sin_addr);
  c->state = CONNECTING;
  c->t_open = now_ns();
  if (!c->seeder) n_inflight++;
  if (connect(c->fd, (void *)&a, sizeof a) && errno != EINPROGRESS)
    die("connect: %s", strerror(errno));
  struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
  epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

/* Wait for at most this long, and serve what is there. */
static void poll_once(long long ns) {
  struct epoll_event ev[256];
  struct timespec ts = {ns / 1000000000, ns % 1000000000};
  int n = epoll_pwait2(ep, ev, 256, &ts, NULL);
  for (int i = 0; i < n; i++) {
    conn *c = ev[i].data.ptr;
    if (c->state == DEAD) continue;
    if (c->state == CONNECTING) {
      int er = 0;
      socklen_t l = sizeof er;
      getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &er, &l);
      if (er) {
        kill_conn(c, strerror(er));
        continue;
      }
      ev_mod(c, EPOLLIN);
      start_http(c);
      continue;
    }
    if (ev[i].events & EPOLLOUT && c->txlen) {
      ssize_t w = send(c->fd, c->tx, c->txlen, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (w > 0) {
        memmove(c->tx, c->tx + w, c->txlen - w);
        c->txlen -= w;
      }
      if (!c->txlen) ev_mod(c, EPOLLIN);
    }
    if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_read(c);
  }
}

/* Serve for some seconds. */
static void pump(double sec) {
  u64 e = now_ns() + (u64)(sec * 1e9);
  while (now_ns() < e) poll_once(20000000);
}

/* Tell those who want to know that the load begins (SIGUSR1) or has ended (SIGUSR2). */
static void tell(int number) {
  for (int i = 0; i < ntold; i++) kill(told[i], number);
}

int main(int ac, char **av) {
  static struct option L[] = {
#define O(n, c) {n, required_argument, 0, c}
      O("dialect", 'd'),
      O("host", 'h'),
      O("port", 'p'),
      O("path", 'P'),
      O("rooms", 'r'),
      O("members", 'm'),
      O("writers", 'w'),
      O("rate", 'R'),
      O("duration", 'D'),
      O("drain", 1),
      O("updates", 'u'),
      O("seed", 's'),
      O("seed-wait", 2),
      O("need-state", 3),
      O("auth", 4),
      O("join-event", 5),
      O("join-arg-template", 6),
      O("join-wait", 7),
      O("update-event", 8),
      O("update-args-template", 9),
      O("deliver-event", 10),
      O("update-ack", 11),
      O("room-template", 12),
      O("token", 13),
      O("pid", 14),
      O("inflight", 15),
      O("stall", 16),
      O("label", 17),
      O("settle", 18),
      O("header", 19),
      O("verbose", 20),
      O("lead", 21),
      O("namespace-template", 22),
      O("notify", 23),
      {0}};
  int o;
  while ((o = getopt_long(ac, av, "", L, NULL)) != -1) switch (o) {
    case 'd':
      dialect = !strcmp(optarg, "sio")           ? SIO
                : !strcmp(optarg, "sio-msgpack") ? MSGPACK
                : !strcmp(optarg, "yws")         ? YWS
                : !strcmp(optarg, "hocuspocus")  ? HOCUS
                                                 : (die("dialect?"), 0);
      break;
    case 'h': host = optarg; break;
    case 'p': nports = numbers(optarg, ports); break;
    case 'P': path = optarg; break;
    case 'r': rooms = atoi(optarg); break;
    case 'm': members = atoi(optarg); break;
    case 'w': writers = atoi(optarg); break;
    case 'R': rate = atof(optarg); break;
    case 'D': duration = atof(optarg); break;
    case 1: drain = atof(optarg); break;
    case 'u': updates_f = optarg; break;
    case 's': seed_f = optarg; break;
    case 2: seed_wait = atof(optarg); break;
    case 3: need_state = atoi(optarg); break;
    case 4: auth_t = optarg; break;
    case 5: join_ev = optarg; break;
    case 6: join_args = optarg; break;
    case 7:
      if (!strcmp(optarg, "none"))
        join_wait_ack = 0;
      else if (!strncmp(optarg, "event:", 6)) {
        join_wait_ev = optarg + 6;
        join_wait_ack = 0;
      }
      break;
    case 8: update_ev = optarg; break;
    case 9: update_args = optarg; break;
    case 10: deliver_ev = optarg; break;
    case 11: update_ack = atoi(optarg); break;
    case 12: room_t = optarg; break;
    case 13: token = optarg; break;
    case 15: inflight = atoi(optarg); break;
    case 16: stall = atoi(optarg); break;
    case 17: label = optarg; break;
    case 18: settle = atof(optarg); break;
    case 19: header = optarg; break;
    case 20: verbose = atoi(optarg); break;
    case 21: lead = atoi(optarg); break;
    case 22: ns_t = optarg; break;
    case 23: ntold = numbers(optarg, told); break;
    case 14: npids = numbers(optarg, pids); break;
    default: exit(2);
    }
  if (!deliver_ev) deliver_ev = update_ev;
  if (!path)
    path = dialect == YWS     ? "/{room}"
           : dialect == HOCUS ? "/"
                              : "/socket.io/?EIO=4&transport=websocket";
  if (rate > 0) {
    if (!updates_f) die("--updates needed");
    load(updates_f, &U);
  }
  if (seed_f) load(seed_f, &S);
  if (!writers || writers > members) writers = members;
  if (rate > 0 && writers > (int)U.nw) writers = U.nw;
  struct rlimit rl;
  getrlimit(RLIMIT_NOFILE, &rl);
  rl.rlim_cur = rl.rlim_max;
  setrlimit(RLIMIT_NOFILE, &rl);
  NC = rooms * members;
  NT = NC + (seed_f ? rooms : 0);
  C = calloc(NT, sizeof *C);
  RB = malloc(RBN);
  hist = calloc(HB, 4);
  ahist = calloc(HB, 4);
  xhist = calloc(HB, 4);
  chist = calloc(HB, 4);
  ep = epoll_create1(0);
  for (int i = 0; i < NT; i++) {
    conn *c = &C[i];
    c->state = -1;
    c->seeder = i >= NC;
    c->room = i < NC ? i % rooms : i - NC;
    c->member = i < NC ? i / rooms : members;
    c->writer = i < NC && c->member < writers ? c->member : -1;
    c->last = calloc(writers ? writers : 1, 4);
  }
  /* The four moments at which the server is looked at: before the fleet, when it has joined, when
   * the load begins and when it has ended. */
  double ut0, st0, rss0, h0, ut1, st1, rss1, h1, ut2, st2, rss2, h2, ut3, st3, rss3, h3;
  if (seed_f) { /* one connection per room writes the seed document and stays */
    for (int r = 0; r < rooms; r++) open_conn(&C[NC + r]);
    for (u64 dl = now_ns() + 15000000000ull; now_ns() < dl;) {
      int k = 0;
      for (int r = 0; r < rooms; r++) k += C[NC + r].state == READY;
      if (k == rooms) break;
      poll_once(10000000);
    }
    for (u32 s = 0; s < S.per; s++) {
      for (int r = 0; r < rooms; r++) {
        if (C[NC + r].state != READY) die("seeder not ready");
        send_update(&C[NC + r], s, S.p[s], S.len[s], -1);
      }
      poll_once(0);
      if (s % 10 == 9) pump(0.02);
    }
    pump(seed_wait);
    if (!need_state) need_state = S.per;
  }
  /* The fleet connects, at most `inflight` handshakes at once. */
  cpu_rss(&ut0, &st0, &rss0, &h0);
  u64 tc = now_ns(), dl = tc + 40000000000ull;
  int next = 0;
  while (n_ready < NC && now_ns() < dl && n_err < (u64)(NC < 50 ? NC : 50)) {
    while (next < NC && n_inflight < inflight && (!lead || next < rooms || n_ready >= rooms))
      open_conn(&C[next++]);
    poll_once(10000000);
  }
  double connect_s = (now_ns() - tc) / 1e9;
  cpu_rss(&ut1, &st1, &rss1, &h1);
  if (n_ready < NC)
    fprintf(stderr, "only %d of %d connections became ready (%lu errors)\n", n_ready, NC, n_err);
  int *readers = calloc(rooms, sizeof(int));
  for (int i = 0; i < NC; i++) {
    conn *c = &C[i];
    if (stall > 0 && c->member == members - 1 && c->room < stall) {
      c->stalled = 1;
      epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
    } else if (c->state == READY)
      readers[c->room]++;
  }
  pump(settle);
  cpu_rss(&ut2, &st2, &rss2, &h2);
  u64 total = (u64)(rate * duration), closed0 = n_closed;
  interval_ns = rate > 0 ? (u64)(1e9 / rate) : 0;
  if (rate > 0 && total / ((u64)rooms * writers) >= U.per)
    die("updates file too short: need %lu per writer", total / ((u64)rooms * writers) + 1);
  struct timespec g0, g1;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &g0);
  tell(SIGUSR1);
  t0 = now_ns() + 1000000;
  t_end = t0 + (u64)(duration * 1e9);
  running = 1;
  t_last = t0;
  for (;;) {
    u64 now = now_ns();
    int burst = 0;
    while (n_sent < total && now >= t0 + n_sent * interval_ns && burst++ < 32) {
      u64 k = n_sent, idx = k % ((u64)rooms * writers);
      u32 s = k / ((u64)rooms * writers), w = idx / rooms, r = idx % rooms;
      conn *c = &C[w * rooms + r];
      double lag = (now_ns() - (t0 + k * interval_ns)) / 1e3;
      if (lag > lag_max_us) lag_max_us = lag;
      n_sent++;
      if (c->state == READY) {
        n_expect += readers[r] - !c->stalled;
        send_update(c, s, U.p[(size_t)w * U.per + s], U.len[(size_t)w * U.per + s],
                    update_ack ? (long)k + 1 : -1);
      }
    }
    now = now_ns();
    if (now >= t_end && (rate <= 0 || n_deliv >= n_expect || now >= t_end + (u64)(drain * 1e9)))
      break;
    u64 nx = n_sent < total ? t0 + n_sent * interval_ns : now < t_end ? t_end : now + 5000000;
    poll_once(nx > now ? (nx - now > 10000000 ? 10000000 : nx - now) : 0);
  }
  tell(SIGUSR2);
  u64 tf = now_ns();
  cpu_rss(&ut3, &st3, &rss3, &h3);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &g1);
  double wall = (tf - t0) / 1e9, cpu = ut3 + st3 - ut2 - st2,
         gcpu = (g1.tv_sec - g0.tv_sec) + (g1.tv_nsec - g0.tv_nsec) / 1e9;
  printf("{\"label\":\"%s\",\"conns\":%d,\"ready\":%d,\"connect_s\":%.3f,\"connect_cpu_s\":%.2f,"
         "\"connect_p50_ms\":%.1f,\"connect_p99_ms\":%.1f,\"state_mb\":%.2f,"
         "\"rss_before_mb\":%.1f,\"rss_conn_mb\":%.1f,\"rss_end_mb\":%.1f,\"rss_peak_mb\":%.1f,"
         "\"kb_per_conn\":%.2f,\"rate\":%.0f,\"wall_s\":%.2f,\"sent\":%lu,\"expected\":%lu,"
         "\"delivered\":%lu,"
         "\"echo\":%lu,\"frames\":%lu,\"bytes\":%lu,\"gaps\":%lu,\"dups\":%lu,\"unknown\":%lu,"
         "\"proto_err\":%lu,\"acks\":%lu,\"closed\":%lu,\"deliv_per_s\":%.0f,\"p50_ms\":%.2f,\"p95_"
         "ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.1f,"
         "\"cpu_s\":%.2f,\"user_s\":%.2f,\"sys_s\":%.2f,\"cpu_pct\":%.1f,\"us_per_deliv\":%.2f,"
         "\"gen_cpu_pct\":%.1f,\"gen_lag_max_ms\":%.1f",
         label, NC, n_ready, connect_s, ut1 + st1 - ut0 - st0, pct(chist, .5), pct(chist, .99),
         n_statebytes / 1e6, rss0, rss1, rss3, h3, NC ? (rss1 - rss0) * 1024 / NC : 0, rate, wall,
         n_sent, n_expect, n_deliv, n_echo, n_frames, n_bytes, n_gap, n_dup, n_unknown, n_proto,
         n_ack, n_closed - closed0, n_inwin / duration, pct(hist, .5), pct(hist, .95),
         pct(hist, .99), hmax / 1000.0, cpu, ut3 - ut2, st3 - st2, 100 * cpu / wall,
         n_deliv ? cpu * 1e6 / n_deliv : 0, 100 * gcpu / wall, lag_max_us / 1000);
  if (update_ack)
    printf(",\"ack_p50_ms\":%.2f,\"ack_p99_ms\":%.2f,\"ack_max_ms\":%.1f", pct(ahist, .5),
           pct(ahist, .99), amax / 1000.0);
  if (nports > 1) {
    printf(",\"cross\":%lu,\"cross_p50_ms\":%.2f,\"cross_p99_ms\":%.2f", n_cross,
           pct(xhist, .5), pct(xhist, .99));
  }
  printf(",\"port_delivered\":[");
  for (int i = 0; i < nports; i++) printf("%s%lu", i ? "," : "", n_port_deliv[i]);
  printf("]}\n");
  return n_ready < NC;
}
