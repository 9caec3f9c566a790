/* rss.h - the nic's hash (abi/toeplitz.h), with which flow.c picks ports that steer back. */
#ifndef NEAT_RSS_H
#define NEAT_RSS_H

#include "toeplitz.h"

#endif
