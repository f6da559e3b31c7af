/* The yardstick of W1: a first-come-first-served queue before c equal slots, on a bare binary heap, and nothing else.
 *
 * Same arrivals and service times as the simulator, draw by draw (rules 2 and 3 of PHYSICS.md): one hash a request, of
 * which 24 bits are its spacing and 12 its service quantile; a second's spacings are scaled to fill it. There is no
 * routing, no function, no class, no ledger: what is left is the least that any request-level simulator must do.
 */
#include <stdint.h>

static uint64_t draw(uint64_t base, uint64_t id)
{
    uint64_t z = base + (id + 1) * 0x9E3779B97F4A7C15u;
    z ^= z >> 30;
    z *= 0xBF58476D1CE4E5B9u;
    z ^= z >> 27;
    z *= 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static int64_t exponential(const int64_t *table, uint64_t h)
{
    uint64_t k = h >> 52;
    int64_t f = (h >> 40) & 4095;
    return table[k] + (((table[k + 1] - table[k]) * f) >> 12);
}

/* Put `finish` in place of the least of heap[0..c) and restore the order. */
static void replace_least(int64_t *heap, int64_t c, int64_t finish)
{
    int64_t i = 0, child;
    while ((child = 2 * i + 1) < c) {
        child += child + 1 < c && heap[child + 1] < heap[child]; /* no branch: half of them would be mispredicted */
        if (heap[child] >= finish)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = finish;
}

/* Serve every request of counts[0..seconds); return the sum of all latencies in nanoseconds.
 *
 * base: of the draws of requests and of the seconds' closing gaps. exponentials: 4,097 knots. quantiles: 4,096 factors
 * in 1/65536. heap: c slots, all zero. at, draws: room for the requests of the busiest second.
 */
int64_t serve(const int64_t *counts, int64_t seconds, const uint64_t *base, const int64_t *exponentials,
              const int64_t *quantiles, int64_t mean_ns, int64_t *heap, int64_t c, int64_t *at, uint64_t *draws)
{
    int64_t latency = 0;
    uint64_t id = 0;
    for (int64_t s = 0; s < seconds; s++) {
        int64_t n = counts[s], total = 0;
        for (int64_t i = 0; i < n; i++) {
            draws[i] = draw(base[0], id++);
            at[i] = total += exponential(exponentials, draws[i]);
        }
        total += exponential(exponentials, draw(base[1], (uint64_t)s));
        for (int64_t i = 0; i < n; i++) {
            int64_t inside = (int64_t)((double)at[i] / (double)total * 1e9);
            int64_t arrival = s * 1000000000 + (inside < 999999999 ? inside : 999999999);
            int64_t start = heap[0] > arrival ? heap[0] : arrival;
            int64_t finish = start + ((mean_ns * quantiles[(draws[i] >> 12) & 4095]) >> 16);
            replace_least(heap, c, finish);
            latency += finish - arrival;
        }
    }
    return latency;
}
